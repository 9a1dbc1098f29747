"""Compiles one CUDA C++ source to a fatbin: machine code per architecture and PTX of the newest."""

load("@cuda//:root.bzl", "ROOT")

def _cuda_fatbin_impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".fatbin")
    args = ctx.actions.args()
    args.add("-fatbin")
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

cuda_fatbin = rule(
    implementation = _cuda_fatbin_impl,
    attrs = {
        "architectures": attr.string_list(mandatory = True),
        "hdrs": attr.label_list(allow_files = True),
        "nvcc_options": attr.string_list(),
        "src": attr.label(mandatory = True, allow_single_file = [".cu"]),
    },
)
