/* SPDX-License-Identifier: Apache-2.0 */
/* Functions to redirect. Each fixture_<shape>_<offset> returns its argument plus 100, starts
 * <offset> bytes behind a 64-byte boundary and has a prologue of its own shape. */
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* clang-format off */
#define SHAPE(shape, offset, body)                                                                 \
    __asm__(".text\n.p2align 6" FILL "\n.skip 64 + " #offset FILL "\n"                              \
            ".globl fixture_" #shape "_" #offset "\n"                                              \
            ".type fixture_" #shape "_" #offset ", @function\n"                                    \
            "fixture_" #shape "_" #offset ":\n" body                                               \
            "\n.size fixture_" #shape "_" #offset ", . - fixture_" #shape "_" #offset "\n");

#ifdef __x86_64__
#define FILL ", 0xcc"
#define SAVED_REGISTERS "rbx", "r12", "r13"
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
#endif

#ifdef __aarch64__
#define FILL ""
#define SAVED_REGISTERS "x19", "x20", "x21"
#define PUSH "stp x29,x30,[sp,#-16]!\n"
#define POP "ldp x29,x30,[sp],#16\n"
/* Adds 100 if the comparison has this result, so that a wrong branch to it shows. */
#define ADD_IF(comparison, result)                                                                 \
    comparison "\n cset x9," result "\n add x0,x0,#99\n add x0,x0,x9\n ret\n"
#define LOAD_AND_ADD "ldr x17,[x17,:lo12:fixture_hundred]\n add x0,x0,x17\n ret\n"
#define SHAPES(offset)                                                                             \
    SHAPE(frame, offset, PUSH "mov x29,sp\n add x0,x0,#100\n" POP "ret")                           \
    SHAPE(saved, offset, "str x19,[sp,#-16]!\n mov x19,x0\n add x0,x19,#100\n ldr x19,[sp],#16\n"   \
                         "ret")                                                                    \
    SHAPE(stack, offset, "sub sp,sp,#32\n str x0,[sp,#8]\n ldr x0,[sp,#8]\n add x0,x0,#100\n"       \
                         "add sp,sp,#32\n ret")                                                    \
    SHAPE(address, offset, PUSH "adrp x9,fixture_hundred\n ldr x9,[x9,:lo12:fixture_hundred]\n"     \
                           "add x0,x0,x9\n" POP "ret")                                             \
    SHAPE(branch, offset, "cmp x0,#0\n b.eq 1f\n add x0,x0,#100\n ret\n 1: mov x0,#100\n ret")     \
    SHAPE(call, offset, PUSH "bl fixture_target\n" POP "ret")                                      \
    SHAPE(marked, offset, "bti c\n" PUSH "mov x29,sp\n add x0,x0,#100\n" POP "ret")                \
    SHAPE(signed, offset, "paciasp\n" PUSH "add x0,x0,#100\n" POP "autiasp\n ret")                 \
    SHAPE(keyed, offset, "pacibsp\n" PUSH "add x0,x0,#100\n" POP "autibsp\n ret")                  \
    SHAPE(vector, offset, "stp d8,d9,[sp,#-16]!\n fmov d8,x0\n fmov x0,d8\n add x0,x0,#100\n"       \
                          "ldp d8,d9,[sp],#16\n ret")                                              \
    SHAPE(constant, offset, "mov x9,#100\n add x0,x0,x9\n ret")                                     \
    SHAPE(tail, offset, "b fixture_target")                                                        \
    SHAPE(last, offset, "bti jc\n b fixture_target")                                              \
    SHAPE(zero, offset, "cbz x0,1f\n" ADD_IF("cmp x0,#0", "ne") "1:" ADD_IF("cmp x0,#0", "eq"))     \
    SHAPE(word, offset, "cbnz w0,1f\n" ADD_IF("cmp w0,#0", "eq") "1:" ADD_IF("cmp w0,#0", "ne"))    \
    SHAPE(bit, offset, "tbz x0,#40,1f\n" ADD_IF("tst x0,#1<<40", "ne")                              \
                       "1:" ADD_IF("tst x0,#1<<40", "eq"))                                         \
    SHAPE(bits, offset, "tbnz w0,#3,1f\n" ADD_IF("tst x0,#8", "eq") "1:" ADD_IF("tst x0,#8", "ne")) \
    SHAPE(guarded, offset, "bti c\n cbz x0,1f\n" ADD_IF("cmp x0,#0", "ne")                         \
                           "1:" ADD_IF("cmp x0,#0", "eq"))                                         \
    SHAPE(page, offset, "adrp x9,fixture_hundred\n ldr x9,[x9,:lo12:fixture_hundred]\n"            \
                        "add x0,x0,x9\n ret")                                                     \
    SHAPE(nearby, offset, "adr x9,1f\n ldr x9,[x9]\n add x0,x0,x9\n ret\n 1: .quad 100")           \
    SHAPE(register, offset, "adr x9,1f\n br x9\n nop\n 1: bti j\n add x0,x0,#100\n ret")           \
    SHAPE(pair, offset, "adrp x17,fixture_hundred\n cbz x0,1f\n" LOAD_AND_ADD "1:" LOAD_AND_ADD)  \
    SHAPE(scratch, offset, "mov x17,#60\n mov x16,#40\n add x0,x0,x16\n add x0,x0,x17\n ret")      \
    SHAPE(back, offset, "mov x9,#40\n 1: add x0,x0,#30\n sub x9,x9,#20\n cbnz x9,1b\n"            \
                        "add x0,x0,#40\n ret")

__asm__(".arch_extension pauth\n"
        ".text\n.p2align 2\nfixture_target: bti c\n add x0,x0,#100\n ret\n"
        ".data\n.p2align 3\nfixture_hundred: .quad 100\n");

SHAPES(0) SHAPES(4) SHAPES(8) SHAPES(12) SHAPES(32) SHAPES(56) SHAPES(60)

/* Functions that can't be redirected. */
#define REFUSED(shape, first)                                                                      \
    SHAPE(refused_##shape, 0, first "\n add x0,x0,#100\n ret\n nop\n 1: add x0,x0,#100\n ret")       \
    SHAPE(refused_##shape, 4, "bti c\n" first "\n add x0,x0,#100\n ret\n nop\n"                      \
                              " 1: add x0,x0,#100\n ret")
SHAPE(refused_short, 0, "paciasp")
REFUSED(call, "bl fixture_target")
REFUSED(register, "blr x9")
REFUSED(system, "svc #0")
REFUSED(literal, "ldr x9,1f")
REFUSED(signed, "ldrsw x9,1f")
REFUSED(vector, "ldr q0,1f")
#endif
    /* clang-format on */

    /* Enough to look like NCCL. */
    EXPORT int ncclGetVersion(int *version)
{
    *version = 12345;
    return 0;
}

EXPORT long ncclAllReduce(long value)
{
    __asm__ volatile("" : "+r"(value));
    return value + 100;
}

/* Calls a public function of its own through its PLT, as NCCL does. */
EXPORT long fixture_outer(long value)
{
    __asm__ volatile("" : "+r"(value) : : SAVED_REGISTERS);
    return ncclAllReduce(value) + 1000;
}

/* Imports a function. */
EXPORT int fixture_process(void)
{
    return getpid();
}

/* Not exported: must not be found. */
__attribute__((visibility("hidden"), used)) long fixture_hidden(long value)
{
    return value;
}

EXPORT int fixture_data = 7;

static long resolved(long value)
{
    return value;
}

typedef long (*function)(long);

__attribute__((used)) static function resolver(void)
{
    return resolved;
}

EXPORT long fixture_indirect(long value) __attribute__((ifunc("resolver")));
