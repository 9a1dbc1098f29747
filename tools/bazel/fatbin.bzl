"""Compiles one CUDA C++ source to a fatbin: machine code per architecture and PTX of the newest."""

load("@rules_cc//cc:defs.bzl", "cc_library")

load("@cuda//:root.bzl", "ROOT")

def _cuda_fatbin_impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".fatbin")
    args = ctx.actions.args()
    args.add("-fatbin")
    args.add("-Xfatbin=-compress-all")
    args.add("-o", out)
    args.add("-std=c++17")
    args.add("-O3")
    args.add("-I.")
    args.add_all(ctx.attr.nvcc_options)
    archs = ctx.attr.architectures
    for arch in archs:
        args.add("-gencode=arch=compute_%s,code=sm_%s" % (arch, arch))
    args.add("-gencode=arch=compute_%s,code=compute_%s" % (archs[-1], archs[-1]))
    args.add(ctx.file.src)
    ctx.actions.run(
        executable = ROOT + "/bin/nvcc",
        arguments = [args],
        inputs = [ctx.file.src] + ctx.files.hdrs,
        outputs = [out],
        mnemonic = "CudaFatbin",
        progress_message = "Compiling kernels for sm_" + ", sm_".join(archs),
        use_default_shell_env = True,
    )
    return [DefaultInfo(files = depset([out]), runfiles = ctx.runfiles([out]))]

_cuda_fatbin = rule(
    implementation = _cuda_fatbin_impl,
    attrs = {
        "architectures": attr.string_list(mandatory = True),
        "hdrs": attr.label_list(allow_files = True),
        "nvcc_options": attr.string_list(),
        "src": attr.label(mandatory = True, allow_single_file = [".cu"]),
    },
)

# The same file whatever the host code is compiled for or with.
def _compiled_once_impl(ctx):
    return [DefaultInfo(files = depset(ctx.files.src), runfiles = ctx.runfiles(ctx.files.src))]

_compiled_once = rule(
    implementation = _compiled_once_impl,
    attrs = {"src": attr.label(mandatory = True, cfg = "exec")},
)

def cuda_fatbin(name, **attributes):
    """Compiles src once for all configurations: the sanitizers' and aarch64's use the plain build's."""
    _cuda_fatbin(
        name = name + "_once",
        tags = ["manual"],
        **attributes
    )
    _compiled_once(
        name = name,
        src = ":" + name + "_once",
    )

def embedded_fatbin(name, fatbin, symbol):
    """A library that holds the fatbin as a hidden array of this name.

    Assembled here and not by cc_library, which does not see that what .incbin names has changed.
    """
    native.genrule(
        name = name + "_object",
        srcs = [fatbin],
        outs = [name + ".o"],
        cmd = "printf '%s\\n' " +
              "'.section .rodata' '.balign 16' '.globl {symbol}' '.hidden {symbol}' ".format(symbol = symbol) +
              "'{symbol}: .incbin \"$(location {fatbin})\"' ".format(symbol = symbol, fatbin = fatbin) +
              "'.section .note.GNU-stack, \"\", %progbits' | $(CC) -c -x assembler -o $@ -",
        toolchains = ["@bazel_tools//tools/cpp:current_cc_toolchain"],
    )
    cc_library(
        name = name,
        srcs = [name + ".o"],
    )
