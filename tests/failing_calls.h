// SPDX-License-Identifier: Apache-2.0
// Calls of the C library that fail where a test wants it, also those of the plugin: a program's own
// functions are found before the library's.
#ifndef LAMPREY_TESTS_FAILING_CALLS_H
#define LAMPREY_TESTS_FAILING_CALLS_H

namespace lamprey_test {

enum class failing_call {
    none,
    accept4,
    getrandom,
    mmap_to_execute, // without a file
    packet_socket,   // of Unix sockets, those that NCCL's emulator has no use for
    stat_of_network,
};

// From now on the nth such call of this process fails; 0: all of them.
void fail_call(failing_call call, int nth);

} // namespace lamprey_test

#endif
