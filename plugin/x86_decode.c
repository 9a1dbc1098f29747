/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/x86_decode.h"

#include <stdbool.h>
#include <string.h>

/* What follows an opcode. */
enum {
    KNOWN = 0x01,
    MODRM = 0x02,
    IMM8 = 0x04,
    IMMZ = 0x08, /* 32 bits, 16 with an operand-size prefix */
    IMMV = 0x10, /* as IMMZ, 64 with REX.W */
    REL8 = 0x20,
    REL32 = 0x40,
    LOCKABLE = 0x80, /* lock is valid where the destination is memory */
};

/* Prefixes that choose among vector instructions of one opcode. */
enum {
    NP = 0x01,
    P66 = 0x02,
    PF3 = 0x04,
    PF2 = 0x08,
    MEMORY = 0x10,   /* only with a memory operand */
    REGISTER = 0x20, /* only with a register operand */
    BYTE = 0x40,     /* an 8-bit immediate follows */
};

#define ALU(base, lock)                                                                            \
    [base] = KNOWN | MODRM | lock, [(base) + 1] = KNOWN | MODRM | lock,                            \
    [(base) + 2] = KNOWN | MODRM, [(base) + 3] = KNOWN | MODRM, [(base) + 4] = KNOWN | IMM8,       \
    [(base) + 5] = KNOWN | IMMZ

/* clang-format off */
static const uint8_t one_byte[256] = {
    ALU(0x00, LOCKABLE), ALU(0x08, LOCKABLE), ALU(0x10, LOCKABLE), ALU(0x18, LOCKABLE),
    ALU(0x20, LOCKABLE), ALU(0x28, LOCKABLE), ALU(0x30, LOCKABLE), ALU(0x38, 0),
    [0x50 ... 0x5f] = KNOWN,                     /* push, pop */
    [0x63] = KNOWN | MODRM,                      /* movsxd */
    [0x68] = KNOWN | IMMZ, [0x6a] = KNOWN | IMM8,
    [0x69] = KNOWN | MODRM | IMMZ, [0x6b] = KNOWN | MODRM | IMM8,
    [0x70 ... 0x7f] = KNOWN | REL8,
    [0x80] = KNOWN | MODRM | IMM8 | LOCKABLE,
    [0x81] = KNOWN | MODRM | IMMZ | LOCKABLE,
    [0x83] = KNOWN | MODRM | IMM8 | LOCKABLE,
    [0x84 ... 0x85] = KNOWN | MODRM,
    [0x86 ... 0x87] = KNOWN | MODRM | LOCKABLE,
    [0x88 ... 0x8b] = KNOWN | MODRM, [0x8d] = KNOWN | MODRM, [0x8f] = KNOWN | MODRM,
    [0x90 ... 0x99] = KNOWN,                     /* nop, xchg, cdqe, cqo */
    [0xa4 ... 0xa7] = KNOWN,
    [0xa8] = KNOWN | IMM8, [0xa9] = KNOWN | IMMZ,
    [0xaa ... 0xaf] = KNOWN,
    [0xb0 ... 0xb7] = KNOWN | IMM8, [0xb8 ... 0xbf] = KNOWN | IMMV,
    [0xc0 ... 0xc1] = KNOWN | MODRM | IMM8,
    [0xc3] = KNOWN,
    [0xc6] = KNOWN | MODRM | IMM8, [0xc7] = KNOWN | MODRM | IMMZ,
    [0xc9] = KNOWN, [0xcc] = KNOWN,
    [0xd0 ... 0xd3] = KNOWN | MODRM,
    [0xe0 ... 0xe3] = KNOWN | REL8,
    [0xe8 ... 0xe9] = KNOWN | REL32, [0xeb] = KNOWN | REL8,
    [0xf6 ... 0xf7] = KNOWN | MODRM | LOCKABLE,  /* test's immediate is added by its reg field */
    [0xfe ... 0xff] = KNOWN | MODRM | LOCKABLE,
};

/* 0f xx, integer instructions. */
static const uint8_t two_byte[256] = {
    [0x0b] = KNOWN,                              /* ud2 */
    [0x1f] = KNOWN | MODRM,                      /* nop */
    [0x31] = KNOWN,                              /* rdtsc */
    [0x40 ... 0x4f] = KNOWN | MODRM,             /* cmov */
    [0x80 ... 0x8f] = KNOWN | REL32,
    [0x90 ... 0x9f] = KNOWN | MODRM,             /* set */
    [0xa2] = KNOWN,                              /* cpuid */
    [0xa3] = KNOWN | MODRM, [0xa4] = KNOWN | MODRM | IMM8, [0xa5] = KNOWN | MODRM,
    [0xab] = KNOWN | MODRM | LOCKABLE, [0xac] = KNOWN | MODRM | IMM8, [0xad] = KNOWN | MODRM,
    [0xaf] = KNOWN | MODRM,                      /* imul */
    [0xb0 ... 0xb1] = KNOWN | MODRM | LOCKABLE,  /* cmpxchg */
    [0xb3] = KNOWN | MODRM | LOCKABLE,
    [0xb6 ... 0xb7] = KNOWN | MODRM,
    [0xba] = KNOWN | MODRM | IMM8 | LOCKABLE,
    [0xbb] = KNOWN | MODRM | LOCKABLE,
    [0xbe ... 0xbf] = KNOWN | MODRM,
    [0xc0 ... 0xc1] = KNOWN | MODRM | LOCKABLE,  /* xadd */
    [0xc8 ... 0xcf] = KNOWN,                     /* bswap */
};

/* 0f xx, vector instructions, by the mandatory prefix under which they exist. MMX is left out. */
static const uint8_t vector[256] = {
    [0x10 ... 0x11] = NP | P66 | PF3 | PF2,
    [0x12] = NP | PF3 | PF2, [0x13] = NP | P66 | MEMORY,
    [0x14 ... 0x15] = NP | P66,
    [0x16] = NP | PF3, [0x17] = NP | P66 | MEMORY,
    [0x28 ... 0x29] = NP | P66,
    [0x2a] = PF3 | PF2, [0x2b] = NP | P66 | MEMORY, [0x2c ... 0x2d] = PF3 | PF2,
    [0x2e ... 0x2f] = NP | P66,
    [0x50] = NP | P66 | REGISTER,
    [0x51] = NP | P66 | PF3 | PF2, [0x52 ... 0x53] = NP | PF3, [0x54 ... 0x57] = NP | P66,
    [0x58 ... 0x5a] = NP | P66 | PF3 | PF2, [0x5b] = NP | P66 | PF3,
    [0x5c ... 0x5f] = NP | P66 | PF3 | PF2,
    [0x60 ... 0x6e] = P66, [0x6f] = P66 | PF3, [0x70] = P66 | PF3 | PF2 | BYTE,
    [0x71 ... 0x73] = P66 | REGISTER | BYTE,
    [0x74 ... 0x76] = P66, [0x7e ... 0x7f] = P66 | PF3,
    [0xb8] = PF3, [0xbc ... 0xbd] = NP | P66 | PF3, /* popcnt, bsf, tzcnt, bsr, lzcnt */
    [0xc2] = NP | P66 | PF3 | PF2 | BYTE, [0xc4] = P66 | BYTE,
    [0xc5] = P66 | REGISTER | BYTE, [0xc6] = NP | P66 | BYTE,
    [0xd1 ... 0xd6] = P66, [0xd7] = P66 | REGISTER, [0xd8 ... 0xe5] = P66,
    [0xe6] = P66 | PF3 | PF2, [0xe7] = P66 | MEMORY, [0xe8 ... 0xef] = P66,
    [0xf1 ... 0xf6] = P66, [0xf8 ... 0xfe] = P66,
};

/* VEX map 1: what GCC and clang use to move and clear vectors. */
static const uint8_t vex[256] = {
    [0x10 ... 0x11] = NP | P66,
    [0x28 ... 0x29] = NP | P66,
    [0x57] = NP | P66,
    [0x6c] = P66, [0x6e] = P66, [0x6f] = P66 | PF3,
    [0x7e] = P66 | PF3, [0x7f] = P66 | PF3,
    [0xd6] = P66, [0xef] = P66,
};
/* clang-format on */

struct reader {
    const uint8_t *code;
    size_t size;
    size_t offset;
    bool operand_size;
    bool address_size;
    bool repeat;     /* f3 */
    bool repeat_not; /* f2 */
    bool lock;
    bool segment;
    uint8_t rex; /* 0 if there is none */
    uint8_t modrm;
    bool memory;       /* modrm names memory */
    bool short_branch; /* rel8 */
    struct lamprey_x86_instruction out;
};

static bool take(struct reader *reader, uint8_t *byte)
{
    if (reader->offset >= reader->size || reader->offset >= 15) {
        return false;
    }
    *byte = reader->code[reader->offset++];
    return true;
}

static bool skip(struct reader *reader, size_t bytes)
{
    reader->offset += bytes;
    return reader->offset <= reader->size && reader->offset <= 15;
}

/* Each group of prefixes once; compilers pad with repeated 66 only. */
static bool take_prefixes(struct reader *reader, uint8_t *opcode)
{
    for (;;) {
        if (!take(reader, opcode)) {
            return false;
        }
        switch (*opcode) {
        case 0x26:
        case 0x2e:
        case 0x36:
        case 0x3e:
        case 0x64:
        case 0x65:
            if (reader->segment) {
                return false;
            }
            reader->segment = true;
            continue;
        case 0x66:
            reader->operand_size = true;
            continue;
        case 0x67:
            reader->address_size = true;
            continue;
        case 0xf0:
            reader->lock = true;
            continue;
        case 0xf2:
            reader->repeat_not = true;
            continue;
        case 0xf3:
            reader->repeat = true;
            continue;
        default:
            break;
        }
        if (reader->repeat && reader->repeat_not) {
            return false;
        }
        if ((*opcode & 0xf0) == 0x40) {
            reader->rex = *opcode;
            return take(reader, opcode);
        }
        return true;
    }
}

static bool take_modrm(struct reader *reader)
{
    if (!take(reader, &reader->modrm)) {
        return false;
    }
    uint8_t mod = reader->modrm >> 6;
    uint8_t rm = reader->modrm & 7;
    reader->memory = mod != 3;
    if (mod == 3) {
        return true;
    }
    if (rm == 4) {
        uint8_t sib;
        if (!take(reader, &sib)) {
            return false;
        }
        if (mod == 0 && (sib & 7) == 5) {
            return skip(reader, 4);
        }
    } else if (mod == 0 && rm == 5) {
        if (reader->address_size) {
            return false;
        }
        reader->out.rip_relative = (uint8_t)reader->offset;
        return skip(reader, 4);
    }
    return mod == 0 || skip(reader, mod == 1 ? 1 : 4);
}

static uint8_t reg_field(const struct reader *reader)
{
    return reader->modrm >> 3 & 7;
}

/* Extended opcodes: which values of the reg field exist, and what they change. */
static bool check_group(struct reader *reader, uint8_t opcode, uint8_t *flags)
{
    uint8_t reg = reg_field(reader);
    switch (opcode) {
    case 0x8d:
        return reader->memory;
    case 0x8f:
    case 0xc6:
    case 0xc7:
        return reg == 0;
    case 0xc0:
    case 0xc1:
    case 0xd0:
    case 0xd1:
    case 0xd2:
    case 0xd3:
        return reg != 6;
    case 0xf6:
    case 0xf7:
        if (reg == 0) {
            *flags |= opcode == 0xf6 ? IMM8 : IMMZ;
        }
        return reg != 1 && (!reader->lock || reg == 2 || reg == 3);
    case 0xfe:
        return reg <= 1;
    case 0xff:
        if (reg == 2 || reg == 4) {
            reader->out.kind = LAMPREY_X86_INDIRECT;
            return !reader->lock && !reader->operand_size;
        }
        return reg <= 1 || (reg == 6 && !reader->lock);
    case 0x80:
    case 0x81:
    case 0x83:
        return !reader->lock || reg != 7;
    default:
        return true;
    }
}

static bool check_group_two(struct reader *reader, uint8_t opcode)
{
    uint8_t reg = reg_field(reader);
    switch (opcode) {
    case 0x1f:
        reader->out.kind = LAMPREY_X86_NOP;
        return reg == 0;
    case 0xba:
        return reg >= 4 && (!reader->lock || reg != 4);
    default:
        return true;
    }
}

static void set_branch(struct reader *reader, uint8_t opcode, bool two)
{
    reader->out.branch_offset = (uint8_t)reader->offset;
    if (two || (opcode & 0xf0) == 0x70) {
        reader->out.kind = LAMPREY_X86_JUMP_IF;
        reader->out.reg = opcode & 15;
    } else if (opcode == 0xe8) {
        reader->out.kind = LAMPREY_X86_CALL;
    } else if (opcode == 0xe9 || opcode == 0xeb) {
        reader->out.kind = LAMPREY_X86_JUMP;
    } else {
        reader->out.kind = LAMPREY_X86_LOOP;
    }
}

/* Immediates and branch displacements, by flags. */
static bool take_rest(struct reader *reader, uint8_t flags)
{
    bool wide = (reader->rex & 8) != 0;
    if ((flags & (REL8 | REL32)) != 0) {
        /* Intel and AMD disagree on what an operand-size prefix does to a near branch. */
        if (reader->operand_size && !wide) {
            return false;
        }
        reader->short_branch = (flags & REL8) != 0;
        return skip(reader, reader->short_branch ? 1 : 4);
    }
    if ((flags & IMM8) != 0 && !skip(reader, 1)) {
        return false;
    }
    if ((flags & IMMZ) != 0 && !skip(reader, reader->operand_size && !wide ? 2 : 4)) {
        return false;
    }
    return (flags & IMMV) == 0 || skip(reader, wide ? 8 : (reader->operand_size ? 2 : 4));
}

/* lock needs a read-modify-write instruction with a memory destination. */
static bool lock_is_valid(const struct reader *reader, uint8_t flags)
{
    return !reader->lock || ((flags & LOCKABLE) != 0 && reader->memory);
}

static bool decode_one(struct reader *reader, uint8_t opcode)
{
    uint8_t flags = one_byte[opcode];
    if (flags == 0) {
        return false;
    }
    bool string = (opcode >= 0xa4 && opcode <= 0xa7) || (opcode >= 0xaa && opcode <= 0xaf);
    bool repeatable = string || opcode == 0x90 || opcode == 0xc3;
    if (reader->repeat_not || (reader->repeat && !repeatable)) {
        return false;
    }
    if (opcode >= 0x50 && opcode <= 0x57 && !reader->operand_size) {
        reader->out.kind = LAMPREY_X86_PUSH;
        reader->out.reg = (uint8_t)((opcode & 7) | (reader->rex & 1) << 3);
    } else if (opcode == 0x90 && !(reader->rex & 1)) {
        reader->out.kind = LAMPREY_X86_NOP;
    } else if (opcode == 0xc3) {
        reader->out.kind = LAMPREY_X86_RETURN;
    } else if (opcode == 0xcc) {
        reader->out.kind = LAMPREY_X86_TRAP;
    }
    if ((flags & MODRM) != 0 && (!take_modrm(reader) || !check_group(reader, opcode, &flags))) {
        return false;
    }
    if ((flags & (REL8 | REL32)) != 0) {
        if (reader->address_size) {
            return false;
        }
        set_branch(reader, opcode, false);
    }
    return lock_is_valid(reader, flags) && take_rest(reader, flags);
}

/* Shared by the legacy and the VEX forms: does this prefix exist, and with this kind of operand? */
static bool check_vector(struct reader *reader, uint8_t allowed, uint8_t prefix)
{
    if ((allowed & prefix) == 0 || !take_modrm(reader)) {
        return false;
    }
    if (((allowed & MEMORY) != 0 && !reader->memory) ||
        ((allowed & REGISTER) != 0 && reader->memory)) {
        return false;
    }
    return (allowed & BYTE) == 0 || skip(reader, 1);
}

static uint8_t mandatory_prefix(const struct reader *reader)
{
    if (reader->repeat) {
        return PF3;
    }
    if (reader->repeat_not) {
        return PF2;
    }
    return reader->operand_size ? P66 : NP;
}

static bool decode_two(struct reader *reader)
{
    uint8_t opcode;
    if (!take(reader, &opcode)) {
        return false;
    }
    if (opcode == 0x1e) {
        uint8_t byte;
        reader->out.kind = LAMPREY_X86_ENDBR;
        return reader->repeat && reader->offset == 3 && take(reader, &byte) && byte == 0xfa;
    }
    if (vector[opcode] != 0) {
        /* f2 or f3 together with 66 selects an instruction of its own in a few places. */
        if (reader->lock || ((reader->repeat || reader->repeat_not) && reader->operand_size)) {
            return false;
        }
        if (!check_vector(reader, vector[opcode], mandatory_prefix(reader))) {
            return false;
        }
        uint8_t reg = reg_field(reader);
        if (opcode >= 0x71 && opcode <= 0x73) {
            return reg == 2 || reg == 6 || (opcode == 0x73 ? reg == 3 || reg == 7 : reg == 4);
        }
        return true;
    }
    uint8_t flags = two_byte[opcode];
    if (flags == 0 || reader->repeat || reader->repeat_not) {
        return false;
    }
    if ((flags & MODRM) != 0 && (!take_modrm(reader) || !check_group_two(reader, opcode))) {
        return false;
    }
    if (opcode == 0x0b) {
        reader->out.kind = LAMPREY_X86_TRAP;
    }
    if ((flags & REL32) != 0) {
        if (reader->address_size) {
            return false;
        }
        set_branch(reader, opcode, true);
    }
    return lock_is_valid(reader, flags) && take_rest(reader, flags);
}

/* c5 and c4. Instructions with one source demand vvvv = 1111. */
static bool decode_vex(struct reader *reader, uint8_t lead)
{
    static const uint8_t prefixes[4] = {NP, P66, PF3, PF2};
    uint8_t payload;
    uint8_t opcode;
    if (reader->rex != 0 || reader->operand_size || reader->repeat || reader->repeat_not ||
        reader->lock || reader->address_size) {
        return false;
    }
    if (lead == 0xc4) {
        uint8_t map;
        if (!take(reader, &map) || (map & 31) != 1) {
            return false;
        }
    }
    if (!take(reader, &payload) || !take(reader, &opcode)) {
        return false;
    }
    bool one_source = (payload >> 3 & 15) == 15;
    bool wide = (payload & 4) != 0;
    uint8_t prefix = prefixes[payload & 3];
    if (opcode == 0x77) { /* vzeroupper, vzeroall */
        return one_source && prefix == NP;
    }
    bool two_sources = opcode == 0x57 || opcode == 0x6c || opcode == 0xef;
    bool narrow = opcode == 0x6e || opcode == 0xd6 || opcode == 0x7e;
    if ((!two_sources && !one_source) || (narrow && wide)) {
        return false;
    }
    return check_vector(reader, vex[opcode], prefix);
}

size_t lamprey_x86_decode(const uint8_t *code, size_t size,
                          struct lamprey_x86_instruction *instruction)
{
    struct reader reader = {.code = code, .size = size};
    uint8_t opcode;
    bool known;
    if (!take_prefixes(&reader, &opcode)) {
        return 0;
    }
    if (opcode == 0x0f) {
        known = decode_two(&reader);
    } else if (opcode == 0xc4 || opcode == 0xc5) {
        known = decode_vex(&reader, opcode);
    } else {
        known = decode_one(&reader, opcode);
    }
    if (!known || (reader.lock && !reader.memory)) {
        return 0;
    }
    if (reader.out.branch_offset != 0) {
        if (reader.short_branch) {
            reader.out.displacement = (int8_t)code[reader.out.branch_offset];
        } else {
            memcpy(&reader.out.displacement, code + reader.out.branch_offset, 4);
        }
    } else if (reader.out.rip_relative != 0) {
        memcpy(&reader.out.displacement, code + reader.out.rip_relative, 4);
    }
    reader.out.length = (uint8_t)reader.offset;
    *instruction = reader.out;
    return reader.offset;
}
