"""Tests that run a program of this package in the emulator."""

def emulated_test(name, program, expectation, gpus = 2, args = [], variables = [], data = [], tags = []):
    """See emulated_test.sh for the expectations."""
    native.sh_test(
        name = name,
        size = "medium",
        srcs = ["emulated_test.sh"],
        args = [
            expectation,
            str(gpus),
        ] + ["'%s'" % variable for variable in variables] + ["tests/programs/" + program] + args,
        data = data + [
            ":" + program,
            "//plugin:liblamprey.so",
            "//plugin:libnccl-env.so",
            "//plugin:libnccl-tuner.so",
            "//tests/emulator:libcuda.so.1",
            "//tests/emulator:libnccl.so.2",
            "//tests:topology_fixtures",
            "//topology:liblamprey-topology.so",
        ],
        tags = tags,
    )
