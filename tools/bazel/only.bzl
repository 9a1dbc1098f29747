"""What tests do otherwise in one of the slower configurations."""

def only(cases = None, asan = None, qemu = None, tsan = None):
    """Arguments that leave a GoogleTest program these cases; None: all.

    Args:
      cases: wherever the following say nothing.
      asan: with --config=asan.
      qemu: with --config=aarch64.
      tsan: with --config=tsan.
    """
    elsewhere = ["--gtest_filter=" + cases] if cases else []
    return select({
        "//tools/bazel:in_asan": ["--gtest_filter=" + asan] if asan else elsewhere,
        "//tools/bazel:in_qemu": ["--gtest_filter=" + qemu] if qemu else elsewhere,
        "//tools/bazel:in_tsan": ["--gtest_filter=" + tsan] if tsan else elsewhere,
        "//conditions:default": elsewhere,
    })
