/* SPDX-License-Identifier: Apache-2.0 */
/* Length and kind of x86-64 instructions, as far as compilers put them into functions that NCCL
 * exports. Anything else is refused: a wrong length would corrupt a program, a refusal only means
 * that a function isn't redirected. Pure functions, no state. */
#ifndef LAMPREY_PLUGIN_X86_DECODE_H
#define LAMPREY_PLUGIN_X86_DECODE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum lamprey_x86_kind {
    LAMPREY_X86_PLAIN,    /* does the same at any address, unless rip_relative */
    LAMPREY_X86_ENDBR,    /* endbr64 */
    LAMPREY_X86_NOP,      /* any nop */
    LAMPREY_X86_PUSH,     /* push of a 64-bit register, number in reg */
    LAMPREY_X86_JUMP,     /* jmp rel8 or rel32 */
    LAMPREY_X86_JUMP_IF,  /* jcc rel8 or rel32, condition in reg */
    LAMPREY_X86_LOOP,     /* loop, loope, loopne, jrcxz: rel8 only */
    LAMPREY_X86_CALL,     /* call rel32 */
    LAMPREY_X86_INDIRECT, /* jmp or call through a register or memory */
    LAMPREY_X86_RETURN,
    LAMPREY_X86_TRAP, /* int3, ud2 */
};

struct lamprey_x86_instruction {
    enum lamprey_x86_kind kind;
    uint8_t length;
    uint8_t reg;
    uint8_t rip_relative;  /* offset of a 32-bit displacement relative to the next instruction */
    uint8_t branch_offset; /* offset of a branch's displacement, which ends the instruction */
    int32_t displacement;  /* of the branch or of the memory operand */
};

/* Decodes the instruction at code, of which size bytes may be read. Returns its length, or 0 if it
 * isn't known, not valid or not complete; *instruction is written only on success. */
size_t lamprey_x86_decode(const uint8_t *code, size_t size,
                          struct lamprey_x86_instruction *instruction);

#ifdef __cplusplus
}
#endif

#endif
