/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "tests/nccl_releases/from_inside.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEARCHED_BYTES 4096

#if defined(__x86_64__)
/* rdi: the return instruction, rsi: the function, rdx: its six arguments. */
uintptr_t lamprey_call_by_way_of(const void *way, void *function, const uintptr_t *arguments);
__asm__(".text\n"
        ".type lamprey_call_by_way_of, @function\n"
        "lamprey_call_by_way_of:\n"
        "    sub $8, %rsp\n"
        "    mov %rdi, %r10\n"
        "    mov %rsi, %r11\n"
        "    mov %rdx, %rax\n"
        "    mov (%rax), %rdi\n"
        "    mov 8(%rax), %rsi\n"
        "    mov 16(%rax), %rdx\n"
        "    mov 24(%rax), %rcx\n"
        "    mov 32(%rax), %r8\n"
        "    mov 40(%rax), %r9\n"
        "    lea 1f(%rip), %rax\n"
        "    sub $8, %rsp\n" /* the function expects rsp + 8 to be a multiple of 16 */
        "    push %rax\n"
        "    push %r10\n"
        "    jmp *%r11\n"
        "1:  add $16, %rsp\n"
        "    ret\n"
        ".size lamprey_call_by_way_of, . - lamprey_call_by_way_of\n");

static const void *find_way(void *handle)
{
    const uint8_t *code = dlsym(handle, "ncclGetVersion");
    return code != NULL ? memchr(code, 0xc3, SEARCHED_BYTES) : NULL;
}
#else
static uintptr_t lamprey_call_by_way_of(const void *way, void *function, const uintptr_t *arguments)
{
    (void)way;
    (void)function;
    (void)arguments;
    abort();
}

static const void *find_way(void *handle)
{
    (void)handle;
    return NULL;
}
#endif

uintptr_t lamprey_call_from_inside(void *handle, void *function, uintptr_t a, uintptr_t b,
                                   uintptr_t c, uintptr_t d, uintptr_t e, uintptr_t f)
{
    const uintptr_t arguments[6] = {a, b, c, d, e, f};
    const void *way = find_way(handle);

    if (way == NULL) {
        fprintf(stderr, "no way to call from inside NCCL on this processor\n");
        abort();
    }
    return lamprey_call_by_way_of(way, function, arguments);
}
