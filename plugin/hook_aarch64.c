/* SPDX-License-Identifier: Apache-2.0 */
/* aarch64. The site is one instruction, changed by one store, so nobody is ever held: a branch,
 * within 128 MB of which the island must lie. The architecture promises that running threads see
 * either the old or the new instruction only for branches and the like; processors do so for all.
 *
 * Where no page that near is free, the jump is far: two instructions that reach 4 GB, by way of
 * x17, which every landing pad accepts and which means nothing at a function's entry. A thread may
 * stand between the two, the function's own or ours, so callers are held while they change. The
 * first can only name a page, so each island starts one.
 *
 * Assembled and run under an emulator, not yet on hardware. */
#include "plugin/hook_arch.h"

#ifdef __aarch64__

#include <stdio.h>
#include <string.h>

enum {
    INSTRUCTION_BYTES = 4,
    PAGE_BITS = 12, /* of adrp, whatever the system's pages are */
};

/* These don't fit an enumerator's int. */
static const uint32_t nop = 0xd503201f;
static const uint32_t bti_c = 0xd503245f;
static const uint32_t paciasp = 0xd503233f;
static const uint32_t autiasp = 0xd50323bf;
static const uint32_t pacibsp = 0xd503237f;
static const uint32_t autibsp = 0xd50323ff;
static const uint32_t adrp_x17 = 0x90000011;
static const uint32_t br = 0xd61f0000;
static const uint32_t ret = 0xd65f0000;
static const uint32_t jump_to_itself = 0x14000000;

enum kind {
    PLAIN,
    JUMP,      /* b */
    INDIRECT,  /* br, ret and their signed forms */
    CONDITION, /* branches that may fall through */
    ADDRESS,   /* adr */
    PAGE,      /* adrp */
    CALL,
    LITERAL, /* a load from an address near by */
    UNKNOWN, /* another branch, or what enters the kernel, from where it would come back to the site
              */
};

uintptr_t lamprey_hook_arch_reach(bool far)
{
    return ((uintptr_t)1 << (far ? 32 : 27)) - ((uintptr_t)1 << 16);
}

size_t lamprey_hook_arch_stride(bool far)
{
    return far ? (size_t)1 << PAGE_BITS : LAMPREY_HOOK_ISLAND_BYTES;
}

static uint32_t instruction_at(const uint8_t *code)
{
    uint32_t instruction;
    memcpy(&instruction, code, sizeof(instruction));
    return instruction;
}

static enum kind kind_of(uint32_t instruction)
{
    if ((instruction & 0x1f000000) == 0x10000000) {
        return instruction >> 31 != 0 ? PAGE : ADDRESS;
    }
    if ((instruction & 0x3b000000) == 0x18000000) { /* ldr, ldrsw, prfm */
        return LITERAL;
    }
    /* Branches, exceptions and system instructions are one class. */
    if ((instruction & 0x1c000000) != 0x14000000 || (instruction & 0xff000000) == 0xd5000000) {
        return PLAIN;
    }
    if ((instruction & 0x7c000000) == 0x14000000) {
        return instruction >> 31 != 0 ? CALL : JUMP;
    }
    if ((instruction & 0xff000000) == 0x54000000 || /* b.cond, bc.cond */
        (instruction & 0x7c000000) == 0x34000000) { /* cbz, cbnz, tbz, tbnz */
        return CONDITION;
    }
    if ((instruction & 0xfe000000) == 0xd6000000) {
        return (instruction & 0x00600000) == 0x00200000 ? CALL : INDIRECT; /* blr */
    }
    return UNKNOWN;
}

static bool is_landing_pad(uint32_t instruction)
{
    return (instruction & 0xffffff3f) == 0xd503241f || /* bti, with any target */
           instruction == paciasp || instruction == pacibsp;
}

/* What takes back the landing pad's effect: a signature of the return address. */
static uint32_t undo_of(uint32_t landing_pad)
{
    if (landing_pad == paciasp) {
        return autiasp;
    }
    return landing_pad == pacibsp ? autibsp : nop;
}

/* A direct branch's displacement: bits at position, counted in instructions. */
static int64_t displacement(uint32_t instruction, unsigned position, unsigned bits)
{
    int32_t field = (int32_t)(instruction << (32 - position - bits));
    return (int64_t)(field >> (32 - bits)) * INSTRUCTION_BYTES;
}

/* Where a direct branch at address goes. */
static uintptr_t branch_target(uint32_t instruction, uintptr_t address)
{
    if ((instruction & 0x7c000000) == 0x14000000) { /* b, bl */
        return address + (uintptr_t)displacement(instruction, 0, 26);
    }
    if ((instruction & 0x7e000000) == 0x36000000) { /* tbz, tbnz */
        return address + (uintptr_t)displacement(instruction, 5, 14);
    }
    return address + (uintptr_t)displacement(instruction, 5, 19);
}

static bool is_direct(uint32_t instruction)
{
    enum kind kind = kind_of(instruction);
    return kind == JUMP || kind == CONDITION || (instruction & 0xfc000000) == 0x94000000; /* bl */
}

/* Can the trampoline hold this instruction, and does the function go on behind it? */
static const char *why_not_moved(enum kind kind, bool last)
{
    switch (kind) {
    case CALL:
        /* A return address in the trampoline would stop every unwinder. */
        return "call";
    case LITERAL:
        return "relative load";
    case UNKNOWN:
        return "unknown branch or system call";
    case JUMP:
    case INDIRECT:
        return last ? NULL : "the function ends before the room for a jump does";
    default:
        return NULL;
    }
}

static enum lamprey_status refuse(char *reason, size_t reason_size, const char *why,
                                  const uint8_t *code, size_t offset)
{
    snprintf(reason, reason_size, "%s at +%zu: %08x", why, offset, instruction_at(code + offset));
    return LAMPREY_ERROR_UNSUPPORTED;
}

/* A branch of the function to between two instructions of the site. One to the site itself finds
 * what a caller finds there. */
static enum lamprey_status check_branches(const struct lamprey_hook_plan *plan, size_t limit,
                                          char *reason, size_t reason_size)
{
    uintptr_t function = (uintptr_t)plan->function;
    size_t end = plan->size == 0 ? plan->moved : limit;
    for (size_t offset = 0; offset + INSTRUCTION_BYTES <= end; offset += INSTRUCTION_BYTES) {
        uint32_t instruction = instruction_at(plan->function + offset);
        if (!is_direct(instruction)) {
            continue;
        }
        uintptr_t target = branch_target(instruction, function + offset);
        if (target > function + plan->site && target < function + plan->moved) {
            return refuse(reason, reason_size, "branch into the bytes to be replaced",
                          plan->function, offset);
        }
    }
    return LAMPREY_OK;
}

enum lamprey_status lamprey_hook_arch_plan(struct lamprey_hook_plan *plan, char *reason,
                                           size_t reason_size)
{
    size_t limit = plan->size != 0 && plan->size < plan->readable ? plan->size : plan->readable;
    if ((uintptr_t)plan->function % INSTRUCTION_BYTES != 0) {
        snprintf(reason, reason_size, "not aligned");
        return LAMPREY_ERROR_UNSUPPORTED;
    }
    /* A landing pad stays at the entry: an indirect branch may come to nothing else. */
    plan->site = limit >= INSTRUCTION_BYTES && is_landing_pad(instruction_at(plan->function))
                     ? INSTRUCTION_BYTES
                     : 0;
    plan->site_bytes = plan->far ? 2 * INSTRUCTION_BYTES : INSTRUCTION_BYTES;
    plan->moved = plan->site + plan->site_bytes;
    if (limit < plan->moved) {
        snprintf(reason, reason_size, "the function ends before +%zu", plan->moved);
        return LAMPREY_ERROR_UNSUPPORTED;
    }
    for (size_t offset = plan->site; offset < plan->moved; offset += INSTRUCTION_BYTES) {
        const char *why = why_not_moved(kind_of(instruction_at(plan->function + offset)),
                                        offset + INSTRUCTION_BYTES == plan->moved);
        if (why != NULL) {
            return refuse(reason, reason_size, why, plan->function, offset);
        }
    }
    plan->parks = plan->far;
    plan->interior = plan->far;
    plan->jump_interior = plan->far;
    plan->park_bytes = sizeof(jump_to_itself);
    memcpy(plan->park, &jump_to_itself, sizeof(jump_to_itself));
    memcpy(plan->before, plan->function + plan->site, plan->site_bytes);
    return check_branches(plan, limit, reason, reason_size);
}

/* Where the next instructions go, and how they jump. */
struct writer {
    uint8_t *at;
    uint32_t scratch; /* a register that nobody expects anything in */
    uint32_t jump;    /* the instruction that goes where a register says, here by scratch */
};

static void put(struct writer *writer, uint32_t instruction)
{
    memcpy(writer->at, &instruction, sizeof(instruction));
    writer->at += sizeof(instruction);
}

static void put_address(struct writer *writer, uintptr_t address)
{
    memcpy(writer->at, &address, sizeof(address));
    writer->at += sizeof(address);
}

/* To any distance. */
static void put_jump(struct writer *writer, uintptr_t to)
{
    put(writer, 0x58000040 | writer->scratch); /* ldr scratch, 8 bytes on */
    put(writer, writer->jump);
    put_address(writer, to);
}

static uint32_t branch_over(unsigned bytes)
{
    return 0x14000000 | bytes / INSTRUCTION_BYTES;
}

/* What adr or adrp at address puts into its register. */
static uintptr_t computed_address(uint32_t instruction, uintptr_t address)
{
    int64_t value = (int64_t)((int32_t)(instruction << 8) >> 13) * 4 + (instruction >> 29 & 3);
    if (kind_of(instruction) == ADDRESS) {
        return address + (uintptr_t)value;
    }
    return (address >> PAGE_BITS << PAGE_BITS) + ((uintptr_t)value << PAGE_BITS);
}

/* An instruction of the function's, from address, with the same effect. */
static void put_moved(struct writer *writer, uint32_t instruction, uintptr_t address)
{
    const uint32_t imm = (instruction & 0x7e000000) == 0x36000000 ? 0x3fff : 0x7ffff;
    switch (kind_of(instruction)) {
    case JUMP:
        put_jump(writer, branch_target(instruction, address));
        break;
    case CONDITION:
        put(writer, (instruction & ~(imm << 5)) | 2 << 5); /* to the jump */
        put(writer, branch_over(20));
        put_jump(writer, branch_target(instruction, address));
        break;
    case ADDRESS:
    case PAGE:
        put(writer, 0x58000040 | (instruction & 31)); /* ldr, 8 bytes on */
        put(writer, branch_over(12));
        put_address(writer, computed_address(instruction, address));
        break;
    default:
        put(writer, instruction);
    }
}

/* x9 to x17 mean nothing at a function's entry, so one is free that the moved instructions, two at
 * most, don't name in their four fields for registers. */
static uint32_t free_register(const struct lamprey_hook_plan *plan)
{
    uint32_t named = 0;
    for (size_t offset = plan->site; offset < plan->moved; offset += INSTRUCTION_BYTES) {
        uint32_t instruction = instruction_at(plan->function + offset);
        for (unsigned position = 0; position <= 16; position += position == 10 ? 6 : 5) {
            named |= 1u << (instruction >> position & 31);
        }
    }
    uint32_t found = 17;
    while ((named >> found & 1) != 0) {
        found--;
    }
    return found;
}

static bool branch(uintptr_t from, uintptr_t to, uint32_t *instruction)
{
    int64_t distance = (int64_t)(to - from);
    *instruction = 0x14000000 | ((uint32_t)(distance >> 2) & 0x03ffffff);
    return distance >= -((int64_t)1 << 27) && distance < (int64_t)1 << 27;
}

/* adrp x17, to; br x17 */
static bool far_branch(uintptr_t from, uintptr_t to, uint32_t instructions[2])
{
    int64_t pages = (int64_t)(to >> PAGE_BITS) - (int64_t)(from >> PAGE_BITS);
    instructions[0] =
        adrp_x17 | ((uint32_t)pages & 3) << 29 | ((uint32_t)(pages >> 2) & 0x7ffff) << 5;
    instructions[1] = br | 17 << 5;
    return to % ((uintptr_t)1 << PAGE_BITS) == 0 && pages >= -((int64_t)1 << 20) &&
           pages < (int64_t)1 << 20;
}

enum lamprey_status lamprey_hook_arch_emit(struct lamprey_hook_plan *plan, uintptr_t island,
                                           const void *replacement, uint8_t *bytes, char *reason,
                                           size_t reason_size)
{
    uint32_t to_island[2];
    uint32_t back = 0;
    uintptr_t function = (uintptr_t)plan->function;
    uint32_t pad = plan->site != 0 ? instruction_at(plan->function) : nop;
    struct writer writer = {bytes, 17, br | 17 << 5};
    memset(bytes, 0, LAMPREY_HOOK_ISLAND_BYTES);
    put(&writer, undo_of(pad));
    put_jump(&writer, (uintptr_t)replacement);

    writer.at = bytes + LAMPREY_HOOK_TRAMPOLINE_AT;
    writer.scratch = free_register(plan);
    /* Into a function whose entry is a landing pad br can go to nothing else; ret goes anywhere. */
    writer.jump = (plan->site != 0 ? ret : br) | writer.scratch << 5;
    put(&writer, bti_c);
    put(&writer, pad);
    for (size_t offset = plan->site; offset < plan->moved; offset += INSTRUCTION_BYTES) {
        put_moved(&writer, instruction_at(plan->function + offset), function + offset);
    }
    bool reached = plan->far ? far_branch(function + plan->site, island, to_island)
                             : branch(function + plan->site, island, to_island) &&
                                   branch(island + (uintptr_t)(writer.at - bytes),
                                          function + plan->moved, &back);
    if (!reached) {
        snprintf(reason, reason_size, "the stub is out of reach");
        return LAMPREY_ERROR_UNSUPPORTED;
    }
    if (plan->far) {
        put_jump(&writer, function + plan->moved);
    } else {
        put(&writer, back);
    }
    memcpy(plan->after, to_island, plan->site_bytes);
    return LAMPREY_OK;
}

#elif !defined(__x86_64__)

#include <stdio.h>

uintptr_t lamprey_hook_arch_reach(bool far)
{
    (void)far;
    return 0;
}

size_t lamprey_hook_arch_stride(bool far)
{
    (void)far;
    return LAMPREY_HOOK_ISLAND_BYTES;
}

enum lamprey_status lamprey_hook_arch_plan(struct lamprey_hook_plan *plan, char *reason,
                                           size_t reason_size)
{
    (void)plan;
    snprintf(reason, reason_size, "this processor is not supported");
    return LAMPREY_ERROR_UNSUPPORTED;
}

enum lamprey_status lamprey_hook_arch_emit(struct lamprey_hook_plan *plan, uintptr_t island,
                                           const void *replacement, uint8_t *bytes, char *reason,
                                           size_t reason_size)
{
    (void)island;
    (void)replacement;
    (void)bytes;
    return lamprey_hook_arch_plan(plan, reason, reason_size);
}

#endif
