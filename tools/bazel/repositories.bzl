"""External software: taken from the system, never downloaded."""

def _system_repository_impl(ctx):
    root = ctx.os.environ.get(ctx.attr.variable, "") if ctx.attr.variable else ""
    candidates = ([root] if root else []) + ctx.attr.roots
    for candidate in candidates:
        base = ctx.path(candidate) if candidate.startswith("/") else ctx.path(Label("//:WORKSPACE")).dirname.get_child(candidate)
        if base.get_child(ctx.attr.probe[0]).exists and _probe(base, ctx.attr.probe):
            for name in ctx.attr.links:
                if base.get_child(name).exists:
                    ctx.symlink(base.get_child(name), name)
            ctx.file("root.txt", str(base) + "\n")
            ctx.symlink(ctx.attr.build_file, "BUILD")
            ctx.file("root.bzl", "ROOT = \"%s\"\n" % base)
            return
    fail("%s not found (looked for %s under %s). %s" % (
        ctx.name,
        "/".join(ctx.attr.probe),
        ", ".join(candidates),
        ctx.attr.hint,
    ))

def _probe(base, parts):
    path = base
    for part in parts:
        path = path.get_child(part)
    return path.exists

system_repository = repository_rule(
    implementation = _system_repository_impl,
    local = True,
    environ = ["CUDA_HOME", "GTEST_SOURCE"],
    attrs = {
        "build_file": attr.label(mandatory = True, allow_single_file = True),
        "hint": attr.string(),
        "links": attr.string_list(mandatory = True),
        "probe": attr.string_list(mandatory = True),
        "roots": attr.string_list(mandatory = True),
        "variable": attr.string(),
    },
)

_STUBS = ["rules_cc", "rules_java", "remote_coverage_tools"]

def lamprey_repositories():
    """Declares every repository that the build uses."""

    # Debian's Bazel carries no version and no embedded rules; a released one brings its own.
    if not native.bazel_version:
        for name in _STUBS:
            native.local_repository(name = name, path = "tools/bazel/stubs/" + name)

    system_repository(
        name = "cuda",
        build_file = "@lamprey//tools/bazel:cuda.BUILD",
        hint = "Set CUDA_HOME to a CUDA toolkit of at least 12.8 with nvcc, or run tools/setup, which installs one.",
        links = ["include", "bin", "nvvm", "lib", "lib64"],
        probe = ["bin", "nvcc"],
        roots = ["/usr/local/cuda", ".cuda/toolkit"],
        variable = "CUDA_HOME",
    )
    system_repository(
        name = "googletest",
        build_file = "@lamprey//tools/bazel:googletest.BUILD",
        hint = "Install Debian's package googletest, or run tools/setup.",
        links = ["googletest", "googlemock"],
        probe = ["googletest", "src", "gtest-all.cc"],
        roots = ["/usr/src/googletest"],
        variable = "GTEST_SOURCE",
    )
