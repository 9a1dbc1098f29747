"""External software: taken from the system or from what tools/setup unpacked, never downloaded by Bazel."""

def _absolute(ctx, candidate):
    if candidate.startswith("/"):
        return ctx.path(candidate)
    return _below(ctx.path(Label("//:WORKSPACE")).dirname, candidate)

def _below(base, relative):
    path = base
    for part in relative.split("/"):
        path = path.get_child(part)
    return path

def _candidates(ctx, variable, roots):
    value = ctx.os.environ.get(variable, "")
    return [_absolute(ctx, root) for root in ([value] if value else []) + roots]

def _googletest_repository_impl(ctx):
    candidates = _candidates(ctx, "GTEST_SOURCE", ["/usr/src/googletest"])
    for base in candidates:
        if _below(base, "googletest/src/gtest-all.cc").exists:
            ctx.symlink(base.get_child("googletest"), "googletest")
            ctx.symlink(Label("//tools/bazel:googletest.BUILD"), "BUILD")
            return
    fail("GoogleTest's sources not found (looked for googletest/src/gtest-all.cc under %s). " %
         ", ".join([str(base) for base in candidates]) +
         "Install the package googletest, set GTEST_SOURCE, or run tools/setup.")

googletest_repository = repository_rule(
    implementation = _googletest_repository_impl,
    environ = ["GTEST_SOURCE"],
    local = True,
)

def _cuda_root(ctx):
    candidates = _candidates(ctx, "CUDA_HOME", ["/usr/local/cuda", ".cuda/toolkit"])
    for base in candidates:
        if _below(base, "bin/nvcc").exists and _below(base, "include/cudaTypedefs.h").exists:
            return base
    fail("CUDA toolkit not found (looked for bin/nvcc and include/cudaTypedefs.h under %s). " %
         ", ".join([str(base) for base in candidates]) +
         "Set CUDA_HOME to a toolkit of at least 12.8, or run tools/setup, which installs one.")

# Toolkits carry no NCCL of their own; some distributions put it beside them.
def _nccl(ctx, cuda):
    roots = _candidates(ctx, "NCCL_HOME", [str(cuda), ".cuda/nccl", "/usr"])
    libraries = ["lib64", "lib", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu"]
    for base in roots:
        header = _below(base, "include/nccl.h")
        if not header.exists:
            continue
        for directory in libraries:
            library = _below(base, directory + "/libnccl.so.2")
            if library.exists:
                return header, library
    fail("NCCL not found (looked for include/nccl.h and libnccl.so.2 under %s). " %
         ", ".join([str(base) for base in roots]) +
         "Set NCCL_HOME, or run tools/setup, which installs one.")

def _cuda_repository_impl(ctx):
    root = _cuda_root(ctx)
    header, library = _nccl(ctx, root)
    ctx.symlink(root.get_child("include"), "include")
    ctx.symlink(header, "nccl/include/nccl.h")
    ctx.symlink(library, "nccl/lib/libnccl.so.2")
    ctx.file("root.bzl", "ROOT = \"%s\"\n\nNCCL_LIBRARY = \"%s\"\n" % (root, library.realpath))
    ctx.symlink(Label("//tools/bazel:cuda.BUILD"), "BUILD")

cuda_repository = repository_rule(
    implementation = _cuda_repository_impl,
    environ = ["CUDA_HOME", "NCCL_HOME"],
    local = True,
)

# The cross compiler, and what tools/setup --aarch64 unpacked. Needed with --config=aarch64 only, and fetched only then.
def _aarch64_repository_impl(ctx):
    compiler = ctx.which("aarch64-linux-gnu-g++")
    root = _absolute(ctx, ".cuda/aarch64")
    if not compiler or not root.exists:
        fail("No %s. Run tools/setup --aarch64." % ("aarch64-linux-gnu-g++" if not compiler else root))
    listing = ctx.execute([compiler, "-E", "-x", "c++", "-v", "/dev/null"]).stderr
    listing = listing.partition("#include <...> search starts here:\n")[2].partition("End of search list.")[0]
    directories = [ctx.path(line.strip()) for line in listing.splitlines()]
    own = [_below(root, "usr/include"), _below(root, "usr/include/aarch64-linux-gnu")]
    libraries = [_below(root, "usr/lib/aarch64-linux-gnu"), _below(root, "lib/aarch64-linux-gnu")]
    tools = {"gcc": str(ctx.which("aarch64-linux-gnu-gcc"))}
    for tool in ["ar", "cpp", "dwp", "gcov", "ld", "llvm-cov", "nm", "objcopy", "objdump", "strip"]:
        tools[tool] = str(ctx.which("aarch64-linux-gnu-" + tool) or "/bin/false")
    ctx.file("compiler.bzl", "".join([
        "%s = %r\n" % pair
        for pair in [
            ("INCLUDES", [str(directory.realpath) for directory in directories if directory.exists] +
                         [str(directory) for directory in own]),
            ("ROOT_FLAGS", ["-isystem%s" % directory for directory in own]),
            ("ROOT_LINK_FLAGS", ["-L%s" % libraries[0]] +
                                ["-Wl,-rpath-link=%s" % directory for directory in libraries]),
            ("TOOLS", tools),
        ]
    ]))
    ctx.template("qemu.sh", Label("//tools/bazel:qemu_aarch64.sh"), {"@ROOT@": str(root)})
    ctx.symlink(Label("//tools/bazel:aarch64.BUILD"), "BUILD")

aarch64_repository = repository_rule(
    implementation = _aarch64_repository_impl,
    environ = ["PATH"],
    local = True,
)

_STUBS = ["rules_cc", "rules_java", "remote_coverage_tools"]

def lamprey_repositories():
    """Declares every repository that the build uses."""

    # Debian's Bazel carries no version and no embedded rules; a released one brings its own.
    if not native.bazel_version:
        for name in _STUBS:
            native.local_repository(name = name, path = "tools/bazel/stubs/" + name)

    aarch64_repository(name = "aarch64")
    cuda_repository(name = "cuda")
    googletest_repository(name = "googletest")
