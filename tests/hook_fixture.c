/* SPDX-License-Identifier: Apache-2.0 */
/* Functions to redirect. Each fixture_<shape>_<offset> returns its argument plus 100, starts <offset>
 * bytes behind a 64-byte boundary and has a prologue of its own shape. */
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

#ifdef __x86_64__
/* clang-format off */
#define SHAPE(shape, offset, body)                                                                 \
    __asm__(".text\n.p2align 6, 0xcc\n.skip 64 + " #offset ", 0xcc\n"                              \
            ".globl fixture_" #shape "_" #offset "\n"                                              \
            ".type fixture_" #shape "_" #offset ", @function\n"                                    \
            "fixture_" #shape "_" #offset ":\n" body                                               \
            "\n.size fixture_" #shape "_" #offset ", . - fixture_" #shape "_" #offset "\n");

#define SHAPES(offset)                                                                             \
    SHAPE(frame, offset, "push %rbp\n mov %rsp,%rbp\n lea 100(%rdi),%rax\n pop %rbp\n ret")        \
    SHAPE(saved, offset, "push %r15\n mov %rdi,%r15\n lea 100(%r15),%rax\n pop %r15\n ret")        \
    SHAPE(pushes, offset, "push %rbx\n push %rbp\n push %rbx\n push %r12\n lea 100(%rdi),%rax\n"   \
                          "pop %r12\n pop %rbx\n pop %rbp\n pop %rbx\n ret")                       \
    SHAPE(stack, offset, "sub $24,%rsp\n mov %rdi,8(%rsp)\n mov 8(%rsp),%rax\n add $100,%rax\n"    \
                         "add $24,%rsp\n ret")                                                     \
    SHAPE(load, offset, "mov fixture_hundred(%rip),%rax\n add %rdi,%rax\n mov %rax,%rcx\n ret")   \
    SHAPE(address, offset, "push %rbp\n lea fixture_hundred(%rip),%rax\n mov (%rax),%rax\n"        \
                           "add %rdi,%rax\n pop %rbp\n ret")                                       \
    SHAPE(branch, offset, "test %rdi,%rdi\n je 1f\n lea 100(%rdi),%rax\n ret\n"                    \
                          "1: mov $100,%eax\n ret")                                                \
    SHAPE(limit, offset, "cmp $7,%rdi\n ja 1f\n lea 100(%rdi),%rax\n ret\n"                        \
                         "1: lea 100(%rdi),%rax\n ret")                                            \
    SHAPE(marked, offset, "endbr64\n push %rbp\n mov %rsp,%rbp\n lea 100(%rdi),%rax\n pop %rbp\n"  \
                          "ret")                                                                   \
    SHAPE(vector, offset, "push %rbp\n pxor %xmm0,%xmm0\n mov %rsp,%rbp\n lea 100(%rdi),%rax\n"    \
                          "pop %rbp\n ret")                                                        \
    SHAPE(constant, offset, "movabs $0x1122334455667788,%rax\n mov $100,%eax\n add %rdi,%rax\n"    \
                            "ret")                                                                 \
    SHAPE(tail, offset, "jmp fixture_target")

__asm__(".text\nfixture_target: lea 100(%rdi),%rax\n ret\n"
        ".data\nfixture_hundred: .quad 100\n");

SHAPES(0) SHAPES(1) SHAPES(2) SHAPES(3) SHAPES(4) SHAPES(5) SHAPES(6) SHAPES(7)
SHAPES(59) SHAPES(60) SHAPES(61) SHAPES(62) SHAPES(63)

/* Functions that can't be redirected. */
SHAPE(refused_short, 0, "mov %rdi,%rax\n ret\n 1: .byte 0xcc, 0xcc, 0xcc")
SHAPE(refused_call, 0, "mov %rdi,%rax\n call fixture_target\n ret")
SHAPE(refused_back, 0, "push %rbp\n 1: mov %rdi,%rax\n add $100,%rax\n cmp $0,%rax\n je 1b\n"
                       "pop %rbp\n ret")
SHAPE(refused_counter, 0, "jrcxz 1f\n lea 100(%rdi),%rax\n ret\n 1: lea 100(%rdi),%rax\n ret")
SHAPE(refused_unknown, 0, ".byte 0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc0\n ret")
SHAPE(refused_split, 7, "mov (%rdi),%rax\n add $100,%rax\n nop\n ret")
/* clang-format on */
#endif

/* Enough to look like NCCL. */
EXPORT int ncclGetVersion(int *version) {
    *version = 12345;
    return 0;
}

EXPORT long ncclAllReduce(long value) {
    __asm__ volatile("" : "+r"(value));
    return value + 100;
}

/* Calls a public function of its own through its PLT, as NCCL does. */
EXPORT long fixture_outer(long value) {
    __asm__ volatile("" : "+r"(value) : : "rbx", "r12", "r13");
    return ncclAllReduce(value) + 1000;
}

/* Imports a function. */
EXPORT int fixture_process(void) {
    return getpid();
}

/* Not exported: must not be found. */
__attribute__((visibility("hidden"), used)) long fixture_hidden(long value) {
    return value;
}

EXPORT int fixture_data = 7;

static long resolved(long value) {
    return value;
}

typedef long (*function)(long);

__attribute__((used)) static function resolver(void) {
    return resolved;
}

EXPORT long fixture_indirect(long value) __attribute__((ifunc("resolver")));
