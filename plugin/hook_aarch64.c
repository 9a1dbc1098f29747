/* SPDX-License-Identifier: Apache-2.0 */
/* aarch64. The site is one instruction, changed by one store, so nobody is ever held: a branch,
 * within 128 MB of which the island must lie. The architecture promises that running threads see
 * either the old or the new instruction only for branches and the like; processors do so for all.
 * Assembled and run under an emulator, not yet on hardware. */
#include "plugin/hook_arch.h"

#ifdef __aarch64__

#include <stdio.h>
#include <string.h>

enum {
    INSTRUCTION_BYTES = 4,
};

/* These don't fit an enumerator's int. */
static const uint32_t nop = 0xd503201f;
static const uint32_t bti_c = 0xd503245f;
static const uint32_t paciasp = 0xd503233f;
static const uint32_t autiasp = 0xd50323bf;
static const uint32_t pacibsp = 0xd503237f;
static const uint32_t autibsp = 0xd50323ff;

uintptr_t lamprey_hook_arch_reach(void)
{
    return ((uintptr_t)1 << 27) - ((uintptr_t)1 << 16);
}

static uint32_t instruction_at(const uint8_t *code)
{
    uint32_t instruction;
    memcpy(&instruction, code, sizeof(instruction));
    return instruction;
}

/* How a function starts that does nothing but call on another, or that someone else redirected. */
static bool is_jump(uint32_t instruction)
{
    return (instruction & 0xfc000000) == 0x14000000; /* b */
}

/* Everything else whose meaning depends on its address: branches, adr, adrp, literal loads. */
static bool is_relative(uint32_t instruction)
{
    return (instruction & 0xfc000000) == 0x94000000 || /* bl */
           (instruction & 0xff000000) == 0x54000000 || /* b.cond, bc.cond */
           (instruction & 0x7e000000) == 0x34000000 || /* cbz, cbnz */
           (instruction & 0x7e000000) == 0x36000000 || /* tbz, tbnz */
           (instruction & 0x1f000000) == 0x10000000 || /* adr, adrp */
           (instruction & 0x3b000000) == 0x18000000;   /* ldr, ldrsw, prfm (literal) */
}

static bool is_return(uint32_t instruction)
{
    return (instruction & 0xfe000000) == 0xd6000000; /* br, blr, ret and their signed forms */
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

enum lamprey_status lamprey_hook_arch_plan(struct lamprey_hook_plan *plan, char *reason,
                                           size_t reason_size)
{
    size_t limit = plan->size != 0 && plan->size < plan->readable ? plan->size : plan->readable;
    plan->site = 0;
    if ((uintptr_t)plan->function % INSTRUCTION_BYTES != 0) {
        snprintf(reason, reason_size, "not aligned");
        return LAMPREY_ERROR_UNSUPPORTED;
    }
    /* A landing pad stays at the entry: an indirect branch may come to nothing else. */
    if (limit >= INSTRUCTION_BYTES && is_landing_pad(instruction_at(plan->function))) {
        plan->site = INSTRUCTION_BYTES;
    }
    if (limit < plan->site + INSTRUCTION_BYTES) {
        snprintf(reason, reason_size, "the function ends before +%zu",
                 plan->site + INSTRUCTION_BYTES);
        return LAMPREY_ERROR_UNSUPPORTED;
    }
    uint32_t first = instruction_at(plan->function + plan->site);
    if (is_relative(first) || is_return(first)) {
        snprintf(reason, reason_size, "branch or relative instruction %08x at +%zu", first,
                 plan->site);
        return LAMPREY_ERROR_UNSUPPORTED;
    }
    plan->site_bytes = INSTRUCTION_BYTES;
    plan->moved = plan->site + INSTRUCTION_BYTES;
    plan->parks = false;
    plan->interior = false;
    memcpy(plan->before, plan->function + plan->site, INSTRUCTION_BYTES);
    return LAMPREY_OK;
}

static uint8_t *put(uint8_t *at, uint32_t instruction)
{
    memcpy(at, &instruction, sizeof(instruction));
    return at + sizeof(instruction);
}

/* Any distance, through x17, which every landing pad accepts and no function expects anything in.
 */
static uint8_t *put_jump(uint8_t *at, uintptr_t to)
{
    at = put(at, 0x58000051); /* ldr x17, 8 bytes on */
    at = put(at, 0xd61f0220); /* br x17 */
    memcpy(at, &to, sizeof(to));
    return at + sizeof(to);
}

static uintptr_t jump_target(const uint8_t *code)
{
    int64_t distance = (int64_t)(int32_t)(instruction_at(code) << 6) >> 4;
    return (uintptr_t)code + (uintptr_t)distance;
}

static bool branch(uintptr_t from, uintptr_t to, uint32_t *instruction)
{
    int64_t distance = (int64_t)(to - from);
    *instruction = 0x14000000 | ((uint32_t)(distance >> 2) & 0x03ffffff);
    return distance >= -((int64_t)1 << 27) && distance < (int64_t)1 << 27;
}

enum lamprey_status lamprey_hook_arch_emit(struct lamprey_hook_plan *plan, uintptr_t island,
                                           const void *replacement, uint8_t *bytes, char *reason,
                                           size_t reason_size)
{
    uint32_t to_island;
    uint32_t back;
    uintptr_t site = (uintptr_t)plan->function + plan->site;
    uint8_t *at = bytes;
    memset(bytes, 0, LAMPREY_HOOK_ISLAND_BYTES);
    at = put(at, plan->site != 0 ? undo_of(instruction_at(plan->function)) : nop);
    put_jump(at, (uintptr_t)replacement);

    at = bytes + LAMPREY_HOOK_TRAMPOLINE_AT;
    at = put(at, bti_c);
    at = plan->site != 0 ? put(at, instruction_at(plan->function)) : at;
    if (is_jump(instruction_at(plan->function + plan->site))) {
        at = put_jump(at, jump_target(plan->function + plan->site));
    } else {
        at = put(at, instruction_at(plan->function + plan->site));
    }
    if (!branch(island + (uintptr_t)(at - bytes), (uintptr_t)plan->function + plan->moved, &back) ||
        !branch(site, island, &to_island)) {
        snprintf(reason, reason_size, "the stub is out of reach");
        return LAMPREY_ERROR_UNSUPPORTED;
    }
    put(at, back);
    memcpy(plan->after, &to_island, sizeof(to_island));
    return LAMPREY_OK;
}

#elif !defined(__x86_64__)

#include <stdio.h>

uintptr_t lamprey_hook_arch_reach(void)
{
    return 0;
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
