"""Links programs against the emulator's libraries by path: no run path goes into the program."""

def _shared_library_link_impl(ctx):
    files = ctx.files.libraries
    flags = [file.path for file in files] + ["-Wl,--allow-shlib-undefined"]
    linker_input = cc_common.create_linker_input(
        owner = ctx.label,
        user_link_flags = depset(flags),
        additional_inputs = depset(files),
    )
    return [
        DefaultInfo(files = depset(files), runfiles = ctx.runfiles(files = files)),
        CcInfo(linking_context = cc_common.create_linking_context(
            linker_inputs = depset([linker_input]),
        )),
    ]

shared_library_link = rule(
    implementation = _shared_library_link_impl,
    attrs = {"libraries": attr.label_list(allow_files = True, mandatory = True)},
)
