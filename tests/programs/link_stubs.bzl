"""Empty libraries to link programs against: at run time the loader's path decides between the real ones and the
emulator's, so nothing but names and SONAMEs may come from the build."""

def link_stub(name, soname, symbols):
    """Builds name, a shared object with the SONAME and these functions, which nobody ever calls."""
    native.genrule(
        name = name + "_stub",
        outs = ["link/" + soname],
        cmd = "printf 'void %%s(void) {}\\n' %s | $(CC) -x c -shared -nostdlib -fPIC -Wno-builtin-declaration-mismatch -Wl,-soname,%s -o $@ -" % (
            " ".join(symbols),
            soname,
        ),
        toolchains = ["@bazel_tools//tools/cpp:current_cc_toolchain"],
    )
