"""What tests do otherwise where they run in an emulator of another processor."""

def in_qemu(args):
    """Arguments that a test gets with --config=aarch64 only."""
    return select({
        "//tools/bazel:in_qemu": args,
        "//conditions:default": [],
    })
