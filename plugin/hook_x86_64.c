/* SPDX-License-Identifier: Apache-2.0 */
/* x86-64. The site is five bytes for `jmp rel32`. Two things decide where it lies.
 *
 * Its first two bytes must change by one store, so they may not lie in two 8-byte words. And where
 * the site covers more than one instruction, a thread may stand between two of them; then those two
 * bytes first become a jump to itself, which leaves every later instruction as it was until all
 * threads have moved on. That needs a first instruction of at least two bytes.
 *
 * So some functions can't be changed at their very entry (47 of the 105 that NCCL 2.28.9 exports,
 * most for a first push of one byte). There the first instructions stay, the jump follows them, and
 * the stub undoes what they did: a push by a pop. endbr64 stays too, since processors that check
 * indirect branches demand it at the entry. */
#include "plugin/hook_arch.h"

#ifdef __x86_64__

#include <stdio.h>
#include <string.h>

#include "plugin/x86_decode.h"

enum {
    JUMP_BYTES = 5,
    SCAN_BYTES = 1 << 16,
};

uintptr_t lamprey_hook_arch_reach(bool far)
{
    if (far) {
        return 0;
    }
    /* 2 GB less what a trampoline's own displacements may add. */
    return ((uintptr_t)1 << 31) - ((uintptr_t)1 << 16);
}

size_t lamprey_hook_arch_stride(bool far)
{
    (void)far;
    return LAMPREY_HOOK_ISLAND_BYTES;
}

static enum lamprey_status refuse(char *reason, size_t reason_size, const char *why,
                                  const uint8_t *code, size_t offset, size_t readable)
{
    char bytes[3 * 15 + 1] = "";
    for (size_t i = 0; i < 15 && offset + i < readable; i++) {
        snprintf(bytes + 3 * i, 4, " %02x", code[offset + i]);
    }
    snprintf(reason, reason_size, "%s at +%zu:%s", why, offset, bytes);
    return LAMPREY_ERROR_UNSUPPORTED;
}

static size_t limit_of(const struct lamprey_hook_plan *plan)
{
    return plan->size != 0 && plan->size < plan->readable ? plan->size : plan->readable;
}

static bool fits_a_word(const uint8_t *address, size_t bytes)
{
    return ((uintptr_t)address & 7) + bytes <= 8;
}

/* Whether the jump can go to an instruction of this length. */
static bool can_be_site(const uint8_t *address, size_t length)
{
    if (length >= JUMP_BYTES && fits_a_word(address, JUMP_BYTES)) {
        return true;
    }
    return length >= 2 && fits_a_word(address, 2);
}

/* What the instructions before the site have done. */
struct prologue {
    uint16_t saved; /* registers that a pop will bring back */
    uint16_t read;  /* registers whose value at entry something else now depends on */
    size_t undo_count;
    struct {
        bool pop;
        int32_t value; /* register, or bytes to add to rsp */
    } undo[LAMPREY_HOOK_TRAMPOLINE_AT / 4];
};

enum {
    RSP = 4,
    /* rax, rcx, rdx, rsi, rdi, r8 to r11 */
    CALLER_SAVED = 0x0fc7,
};

/* A register may be overwritten if it is saved, or if nobody can want it: a function that
 * overwrites a scratch register without having read it has no argument there, and nor has its
 * replacement. */
static bool may_overwrite(const struct prologue *prologue, unsigned reg)
{
    return (prologue->saved >> reg & 1) != 0 ||
           ((CALLER_SAVED >> reg & 1) != 0 && (prologue->read >> reg & 1) == 0);
}

/* Instructions with a REX prefix at most. rm and reg are registers if mod is 3. */
static bool integer_may_stay(struct prologue *prologue, const uint8_t *code,
                             const struct lamprey_x86_instruction *instruction)
{
    uint8_t rex = (code[0] & 0xf0) == 0x40 ? code[0] : 0;
    const uint8_t *opcode = code + (rex != 0);
    unsigned mod = opcode[1] >> 6;
    unsigned reg = (opcode[1] >> 3 & 7) | (rex & 4) << 1;
    unsigned rm = (opcode[1] & 7) | (rex & 1) << 3;
    switch (opcode[0]) {
    case 0x89: /* mov rm, reg */
        prologue->read |= (uint16_t)(1u << reg);
        return mod == 3 && rm != reg && may_overwrite(prologue, rm);
    case 0x8b: /* mov reg, rm */
        if (instruction->rip_relative != 0) {
            return may_overwrite(prologue, reg);
        }
        prologue->read |= (uint16_t)(1u << rm);
        return mod == 3 && rm != reg && may_overwrite(prologue, reg);
    case 0x8d: /* lea */
        return instruction->rip_relative != 0 && may_overwrite(prologue, reg);
    case 0x31: /* xor, here as a way to write 0 */
    case 0x33:
        return mod == 3 && rm == reg && may_overwrite(prologue, rm);
    case 0x85: /* test, cmp: flags mean nothing at an entry */
    case 0x39:
    case 0x3b:
        prologue->read |= (uint16_t)(1u << reg | 1u << rm);
        return mod == 3;
    case 0x81:
    case 0x83:
        if (mod == 3 && (opcode[1] >> 3 & 7) == 7) { /* cmp rm, immediate */
            prologue->read |= (uint16_t)(1u << rm);
            return true;
        }
        if (rex == 0x48 && opcode[1] == 0xec) { /* sub rsp, immediate */
            int32_t bytes = (int8_t)opcode[2];
            if (opcode[0] == 0x81) {
                memcpy(&bytes, opcode + 2, sizeof(bytes));
            }
            prologue->undo[prologue->undo_count].pop = false;
            prologue->undo[prologue->undo_count++].value = bytes;
            return true;
        }
        return false;
    default: /* mov register, immediate */
        return (opcode[0] & 0xf8) == 0xb8 &&
               may_overwrite(prologue, (opcode[0] & 7) | (rex & 1) << 3);
    }
}

/* Whether the stub can undo the instruction, so that it may run before the jump; remembers how. */
static bool may_stay(struct prologue *prologue, const uint8_t *code,
                     const struct lamprey_x86_instruction *instruction)
{
    if (prologue->undo_count == sizeof(prologue->undo) / sizeof(prologue->undo[0])) {
        return false;
    }
    switch (instruction->kind) {
    case LAMPREY_X86_ENDBR:
    case LAMPREY_X86_NOP:
        return true;
    case LAMPREY_X86_PUSH:
        prologue->saved |= (uint16_t)(1u << instruction->reg);
        prologue->undo[prologue->undo_count].pop = true;
        prologue->undo[prologue->undo_count++].value = instruction->reg;
        return instruction->reg != RSP;
    case LAMPREY_X86_PLAIN:
        break;
    default:
        return false;
    }
    if (code[0] == 0x66 && code[1] == 0x0f && code[2] == 0xef) { /* pxor, to write 0 */
        return code[3] >= 0xc0 && (code[3] >> 3 & 7) == (code[3] & 7);
    }
    return integer_may_stay(prologue, code, instruction);
}

static enum lamprey_status find_site(struct lamprey_hook_plan *plan, char *reason,
                                     size_t reason_size)
{
    const uint8_t *code = plan->function;
    struct lamprey_x86_instruction instruction;
    struct prologue prologue = {0};
    plan->site = 0;
    /* The stub's undoing has to fit before the trampoline. */
    while (plan->site < LAMPREY_HOOK_TRAMPOLINE_AT / 4) {
        size_t length =
            lamprey_x86_decode(code + plan->site, limit_of(plan) - plan->site, &instruction);
        if (length == 0) {
            return refuse(reason, reason_size, "unknown instruction", code, plan->site,
                          plan->readable);
        }
        if (instruction.kind != LAMPREY_X86_ENDBR && can_be_site(code + plan->site, length)) {
            return LAMPREY_OK;
        }
        if (!may_stay(&prologue, code + plan->site, &instruction)) {
            return refuse(reason, reason_size, "no room for a jump that one store makes visible",
                          code, plan->site, plan->readable);
        }
        plan->site += length;
    }
    return refuse(reason, reason_size, "no place for a jump", code, 0, plan->readable);
}

/* Can the trampoline hold this instruction, and does the function go on behind it? */
static const char *why_not_moved(const struct lamprey_x86_instruction *instruction, bool last)
{
    switch (instruction->kind) {
    case LAMPREY_X86_CALL:
    case LAMPREY_X86_INDIRECT:
        /* A return address in the trampoline would stop every unwinder. */
        return "call or indirect jump";
    case LAMPREY_X86_LOOP:
        return "branch without a long form";
    case LAMPREY_X86_RETURN:
    case LAMPREY_X86_TRAP:
    case LAMPREY_X86_JUMP:
        return last ? NULL : "the function ends before the room for a jump does";
    default:
        return NULL;
    }
}

/* Finds what has to move. A thread between two instructions of the site is what `interior` says. */
static enum lamprey_status measure(struct lamprey_hook_plan *plan, char *reason, size_t reason_size)
{
    const uint8_t *code = plan->function;
    struct lamprey_x86_instruction instruction;
    size_t offset = plan->site;
    plan->interior = false;
    while (offset < plan->site + JUMP_BYTES) {
        size_t length = lamprey_x86_decode(code + offset, limit_of(plan) - offset, &instruction);
        if (length == 0) {
            const char *why = limit_of(plan) < plan->site + JUMP_BYTES
                                  ? "the function is shorter than a jump"
                                  : "unknown instruction";
            return refuse(reason, reason_size, why, code, offset, plan->readable);
        }
        const char *why = why_not_moved(&instruction, offset + length >= plan->site + JUMP_BYTES);
        if (why != NULL) {
            return refuse(reason, reason_size, why, code, offset, plan->readable);
        }
        plan->interior = plan->interior || offset > plan->site;
        offset += length;
    }
    plan->moved = offset;
    return LAMPREY_OK;
}

/* A branch of the function into what is overwritten. Reads on as far as the instructions are
 * known; jump tables can't be seen. */
static enum lamprey_status check_branches(const struct lamprey_hook_plan *plan, char *reason,
                                          size_t reason_size)
{
    const uint8_t *code = plan->function;
    struct lamprey_x86_instruction instruction;
    size_t end = plan->size == 0 ? plan->moved : limit_of(plan);
    end = end < SCAN_BYTES ? end : SCAN_BYTES;
    for (size_t offset = 0; offset < end; offset += instruction.length) {
        if (lamprey_x86_decode(code + offset, end - offset, &instruction) == 0) {
            break;
        }
        if (instruction.branch_offset == 0) {
            continue;
        }
        int64_t target = (int64_t)offset + instruction.length + instruction.displacement;
        /* Back to the entry is a call like any other, but only before anything has to be undone. */
        if (target >= 0 && target < (int64_t)plan->moved && (target > 0 || plan->site > 0)) {
            return refuse(reason, reason_size, "branch into the bytes to be replaced", code, offset,
                          plan->readable);
        }
    }
    return LAMPREY_OK;
}

enum lamprey_status lamprey_hook_arch_plan(struct lamprey_hook_plan *plan, char *reason,
                                           size_t reason_size)
{
    enum lamprey_status status = find_site(plan, reason, reason_size);
    if (status == LAMPREY_OK) {
        status = measure(plan, reason, reason_size);
    }
    if (status == LAMPREY_OK) {
        status = check_branches(plan, reason, reason_size);
    }
    if (status != LAMPREY_OK) {
        return status;
    }
    plan->site_bytes = JUMP_BYTES;
    plan->parks = plan->interior || !fits_a_word(plan->function + plan->site, JUMP_BYTES);
    plan->jump_interior = false;
    plan->park[0] = 0xeb;
    plan->park[1] = 0xfe;
    plan->park_bytes = 2;
    memcpy(plan->before, plan->function + plan->site, JUMP_BYTES);
    return LAMPREY_OK;
}

/* Where the next bytes go, and which address they will have. */
struct writer {
    uint8_t *bytes;
    uintptr_t address;
};

static void put(struct writer *writer, const void *bytes, size_t size)
{
    memcpy(writer->bytes, bytes, size);
    writer->bytes += size;
    writer->address += size;
}

/* The displacement from the end of what is being written to target. */
static bool relative(uintptr_t end, uintptr_t target, int32_t *displacement)
{
    int64_t distance = (int64_t)(target - end);
    *displacement = (int32_t)distance;
    return *displacement == distance;
}

static bool put_jump(struct writer *writer, const uint8_t *opcode, size_t opcode_size,
                     uintptr_t target)
{
    int32_t displacement;
    if (!relative(writer->address + opcode_size + 4, target, &displacement)) {
        return false;
    }
    put(writer, opcode, opcode_size);
    put(writer, &displacement, 4);
    return true;
}

static const uint8_t endbr64[] = {0xf3, 0x0f, 0x1e, 0xfa};
static const uint8_t jump_near[] = {0xe9};

/* Undoes what ran before the jump, last first, and goes to the replacement at any distance. */
static void put_stub(const struct lamprey_hook_plan *plan, struct writer *writer,
                     const void *replacement)
{
    static const uint8_t jump_far[] = {0xff, 0x25, 0, 0, 0, 0}; /* through the next 8 bytes */
    static const uint8_t add_rsp[] = {0x48, 0x81, 0xc4};
    struct lamprey_x86_instruction instruction;
    struct prologue prologue = {0};
    for (size_t offset = 0; offset < plan->site; offset += instruction.length) {
        lamprey_x86_decode(plan->function + offset, plan->site - offset, &instruction);
        may_stay(&prologue, plan->function + offset, &instruction);
    }
    while (prologue.undo_count-- != 0) {
        int32_t value = prologue.undo[prologue.undo_count].value;
        if (prologue.undo[prologue.undo_count].pop) {
            uint8_t pop[] = {0x41, (uint8_t)(0x58 | (value & 7))};
            put(writer, value >= 8 ? pop : pop + 1, value >= 8 ? 2 : 1);
        } else {
            put(writer, add_rsp, sizeof(add_rsp));
            put(writer, &value, sizeof(value));
        }
    }
    put(writer, jump_far, sizeof(jump_far));
    put(writer, &replacement, sizeof(replacement));
}

static bool put_moved(struct writer *writer, const uint8_t *code,
                      const struct lamprey_x86_instruction *instruction)
{
    uintptr_t end = (uintptr_t)code + instruction->length;
    uintptr_t target = end + (uintptr_t)(intptr_t)instruction->displacement;
    if (instruction->kind == LAMPREY_X86_JUMP) {
        return put_jump(writer, jump_near, sizeof(jump_near), target);
    }
    if (instruction->kind == LAMPREY_X86_JUMP_IF) {
        const uint8_t opcode[] = {0x0f, (uint8_t)(0x80 | instruction->reg)};
        return put_jump(writer, opcode, sizeof(opcode), target);
    }
    uint8_t copy[15];
    memcpy(copy, code, instruction->length);
    if (instruction->rip_relative != 0) {
        int32_t displacement;
        if (!relative(writer->address + instruction->length, target, &displacement)) {
            return false;
        }
        memcpy(copy + instruction->rip_relative, &displacement, 4);
    }
    put(writer, copy, instruction->length);
    return true;
}

enum lamprey_status lamprey_hook_arch_emit(struct lamprey_hook_plan *plan, uintptr_t island,
                                           const void *replacement, uint8_t *bytes, char *reason,
                                           size_t reason_size)
{
    struct writer writer = {bytes, island};
    struct lamprey_x86_instruction instruction;
    int32_t displacement;
    memset(bytes, 0xcc, LAMPREY_HOOK_ISLAND_BYTES);
    put_stub(plan, &writer, replacement);

    writer =
        (struct writer){bytes + LAMPREY_HOOK_TRAMPOLINE_AT, island + LAMPREY_HOOK_TRAMPOLINE_AT};
    put(&writer, endbr64, sizeof(endbr64)); /* reached by an indirect call */
    for (size_t offset = 0; offset < plan->moved; offset += instruction.length) {
        lamprey_x86_decode(plan->function + offset, plan->moved - offset, &instruction);
        if (!put_moved(&writer, plan->function + offset, &instruction)) {
            return refuse(reason, reason_size, "an operand is out of the trampoline's reach",
                          plan->function, offset, plan->readable);
        }
    }
    uintptr_t site = (uintptr_t)plan->function + plan->site;
    if (!put_jump(&writer, jump_near, sizeof(jump_near), (uintptr_t)plan->function + plan->moved) ||
        !relative(site + JUMP_BYTES, island, &displacement)) {
        return refuse(reason, reason_size, "the stub is out of reach", plan->function, 0,
                      plan->readable);
    }
    plan->after[0] = jump_near[0];
    memcpy(plan->after + 1, &displacement, 4);
    return LAMPREY_OK;
}

#endif
