// SPDX-License-Identifier: Apache-2.0
#include <Zydis/Zydis.h>
#include <dlfcn.h>
#include <elf.h>
#include <gtest/gtest.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "plugin/image.h"
#include "plugin/x86_decode.h"

namespace {

std::string Hex(const uint8_t *code, size_t size)
{
    std::string text;
    for (size_t i = 0; i < size; i++) {
        char byte[4];
        snprintf(byte, sizeof(byte), "%02x ", code[i]);
        text += byte;
    }
    return text;
}

class Reference {
  public:
    Reference()
    {
#ifndef ZYDIS_MAX_OPERAND_COUNT_VISIBLE // Zydis 3
        ZydisDecoderInit(&decoder_, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_ADDRESS_WIDTH_64);
#else
        ZydisDecoderInit(&decoder_, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
#endif
    }

    bool Decode(const uint8_t *code, size_t size)
    {
#ifndef ZYDIS_MAX_OPERAND_COUNT_VISIBLE // Zydis 3
        const ZyanStatus status = ZydisDecoderDecodeBuffer(&decoder_, code, size, &instruction_);
        std::copy(std::begin(instruction_.operands), std::end(instruction_.operands), operands_);
        return ZYAN_SUCCESS(status);
#else
        return ZYAN_SUCCESS(
            ZydisDecoderDecodeFull(&decoder_, code, size, &instruction_, operands_));
#endif
    }

    size_t Length() const
    {
        return instruction_.length;
    }

    // Says how ours differs, or "".
    std::string Compare(const lamprey_x86_instruction &ours) const
    {
        const bool rip = RipRelative();
        const bool branch = (instruction_.attributes & ZYDIS_ATTRIB_IS_RELATIVE) != 0 && !rip;
        if (ours.length != instruction_.length) {
            return "length";
        }
        if (rip != (ours.rip_relative != 0)) {
            return "rip-relative";
        }
        if (rip && (ours.rip_relative != instruction_.raw.disp.offset ||
                    ours.displacement != instruction_.raw.disp.value)) {
            return "memory displacement";
        }
        if (branch != (ours.branch_offset != 0)) {
            return "branch";
        }
        if (branch && (ours.branch_offset != instruction_.raw.imm[0].offset ||
                       ours.displacement != instruction_.raw.imm[0].value.s ||
                       ours.branch_offset + instruction_.raw.imm[0].size / 8 != ours.length)) {
            return "branch displacement";
        }
        return KindAgrees(ours) ? "" : "kind";
    }

  private:
    bool RipRelative() const
    {
        for (int i = 0; i < instruction_.operand_count; i++) {
            if (operands_[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
                (operands_[i].mem.base == ZYDIS_REGISTER_RIP ||
                 operands_[i].mem.base == ZYDIS_REGISTER_EIP)) {
                return true;
            }
        }
        return false;
    }

    bool KindAgrees(const lamprey_x86_instruction &ours) const
    {
        const ZydisInstructionCategory category = instruction_.meta.category;
        const bool relative = (instruction_.attributes & ZYDIS_ATTRIB_IS_RELATIVE) != 0;
        const ZydisMnemonic mnemonic = instruction_.mnemonic;
        switch (ours.kind) {
        case LAMPREY_X86_ENDBR:
            return mnemonic == ZYDIS_MNEMONIC_ENDBR64;
        case LAMPREY_X86_NOP:
            return mnemonic == ZYDIS_MNEMONIC_NOP || mnemonic == ZYDIS_MNEMONIC_PAUSE;
        case LAMPREY_X86_PUSH:
            return mnemonic == ZYDIS_MNEMONIC_PUSH &&
                   operands_[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                   ZydisRegisterGetId(operands_[0].reg.value) == ours.reg &&
                   operands_[0].size == 64;
        case LAMPREY_X86_JUMP:
            return mnemonic == ZYDIS_MNEMONIC_JMP && relative;
        case LAMPREY_X86_JUMP_IF:
            return category == ZYDIS_CATEGORY_COND_BR && ours.reg == (instruction_.opcode & 15);
        case LAMPREY_X86_LOOP:
            return category == ZYDIS_CATEGORY_COND_BR;
        case LAMPREY_X86_CALL:
            return mnemonic == ZYDIS_MNEMONIC_CALL;
        case LAMPREY_X86_INDIRECT:
            return mnemonic == ZYDIS_MNEMONIC_JMP || mnemonic == ZYDIS_MNEMONIC_CALL;
        case LAMPREY_X86_RETURN:
            return mnemonic == ZYDIS_MNEMONIC_RET;
        case LAMPREY_X86_TRAP:
            return mnemonic == ZYDIS_MNEMONIC_INT3 || mnemonic == ZYDIS_MNEMONIC_UD2;
        case LAMPREY_X86_PLAIN:
            return category != ZYDIS_CATEGORY_COND_BR && category != ZYDIS_CATEGORY_UNCOND_BR &&
                   category != ZYDIS_CATEGORY_CALL && category != ZYDIS_CATEGORY_RET;
        }
        return false;
    }

    ZydisDecoder decoder_;
    ZydisDecodedInstruction instruction_;
    ZydisDecodedOperand operands_[ZYDIS_MAX_OPERAND_COUNT];
};

struct Case {
    const char *what;
    std::vector<uint8_t> code;
    enum lamprey_x86_kind kind;
    int32_t displacement;
};

TEST(Decode, KnowsTheInstructionsOfPrologues)
{
    const Case cases[] = {
        {"push rbp", {0x55}, LAMPREY_X86_PUSH, 0},
        {"push r15", {0x41, 0x57}, LAMPREY_X86_PUSH, 0},
        {"mov rbp, rsp", {0x48, 0x89, 0xe5}, LAMPREY_X86_PLAIN, 0},
        {"mov r13d, r8d", {0x45, 0x89, 0xc5}, LAMPREY_X86_PLAIN, 0},
        {"sub rsp, 0xc8", {0x48, 0x81, 0xec, 0xc8, 0, 0, 0}, LAMPREY_X86_PLAIN, 0},
        {"and rsp, -32", {0x48, 0x83, 0xe4, 0xe0}, LAMPREY_X86_PLAIN, 0},
        {"endbr64", {0xf3, 0x0f, 0x1e, 0xfa}, LAMPREY_X86_ENDBR, 0},
        {"nop word [rax+rax]", {0x66, 0x0f, 0x1f, 0x44, 0, 0}, LAMPREY_X86_NOP, 0},
        {"lea rax, [rip+0x7d38]", {0x48, 0x8d, 0x05, 0x38, 0x7d, 0, 0}, LAMPREY_X86_PLAIN, 0x7d38},
        {"cmp dword [rip-1], 0", {0x83, 0x3d, 0xff, 0xff, 0xff, 0xff, 0}, LAMPREY_X86_PLAIN, -1},
        {"mov rax, fs:0x28", {0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0}, LAMPREY_X86_PLAIN, 0},
        {"movabs rax, 0x5919cafebeef",
         {0x48, 0xb8, 0xef, 0xbe, 0xfe, 0xca, 0x19, 0x59, 0, 0},
         LAMPREY_X86_PLAIN,
         0},
        {"pxor xmm0, xmm0", {0x66, 0x0f, 0xef, 0xc0}, LAMPREY_X86_PLAIN, 0},
        {"movups [rsp+16], xmm0", {0x0f, 0x11, 0x44, 0x24, 0x10}, LAMPREY_X86_PLAIN, 0},
        {"vpxor xmm0, xmm0, xmm0", {0xc5, 0xf9, 0xef, 0xc0}, LAMPREY_X86_PLAIN, 0},
        {"vmovdqu [rdi], ymm8", {0xc5, 0x7e, 0x7f, 0x07}, LAMPREY_X86_PLAIN, 0},
        {"test edi, 1", {0xf7, 0xc7, 1, 0, 0, 0}, LAMPREY_X86_PLAIN, 0},
        {"not edi", {0xf7, 0xd7}, LAMPREY_X86_PLAIN, 0},
        {"mov word [rdi], 5", {0x66, 0xc7, 0x07, 5, 0}, LAMPREY_X86_PLAIN, 0},
        {"data16 lea rdi, [rip+8]", {0x66, 0x48, 0x8d, 0x3d, 8, 0, 0, 0}, LAMPREY_X86_PLAIN, 8},
        {"lock cmpxchg [rdi], rsi", {0xf0, 0x48, 0x0f, 0xb1, 0x37}, LAMPREY_X86_PLAIN, 0},
        {"je +9", {0x74, 9}, LAMPREY_X86_JUMP_IF, 9},
        {"jne -256", {0x0f, 0x85, 0, 0xff, 0xff, 0xff}, LAMPREY_X86_JUMP_IF, -256},
        {"jmp -2", {0xeb, 0xfe}, LAMPREY_X86_JUMP, -2},
        {"jmp +0x100", {0xe9, 0, 1, 0, 0}, LAMPREY_X86_JUMP, 0x100},
        {"call -5", {0xe8, 0xfb, 0xff, 0xff, 0xff}, LAMPREY_X86_CALL, -5},
        {"jmp rax", {0xff, 0xe0}, LAMPREY_X86_INDIRECT, 0},
        {"jmp [rip+0]", {0xff, 0x25, 0, 0, 0, 0}, LAMPREY_X86_INDIRECT, 0},
        {"jrcxz +2", {0xe3, 2}, LAMPREY_X86_LOOP, 2},
        {"ret", {0xc3}, LAMPREY_X86_RETURN, 0},
        {"repz ret", {0xf3, 0xc3}, LAMPREY_X86_RETURN, 0},
        {"ud2", {0x0f, 0x0b}, LAMPREY_X86_TRAP, 0},
        {"int3", {0xcc}, LAMPREY_X86_TRAP, 0},
    };
    Reference reference;
    for (const Case &test : cases) {
        SCOPED_TRACE(test.what);
        lamprey_x86_instruction instruction;
        ASSERT_EQ(lamprey_x86_decode(test.code.data(), test.code.size(), &instruction),
                  test.code.size());
        EXPECT_EQ(instruction.kind, test.kind);
        EXPECT_EQ(instruction.displacement, test.displacement);
        ASSERT_TRUE(reference.Decode(test.code.data(), test.code.size()));
        EXPECT_EQ(reference.Compare(instruction), "");
        // One byte short is incomplete, never another instruction.
        for (size_t size = 0; size < test.code.size(); size++) {
            EXPECT_EQ(lamprey_x86_decode(test.code.data(), size, &instruction), 0u) << size;
        }
    }
}

TEST(Decode, RefusesWhatItDoesNotKnow)
{
    const struct {
        const char *what;
        std::vector<uint8_t> code;
    } cases[] = {
        {"not an instruction in 64-bit mode", {0x06, 0, 0, 0}},
        {"enter", {0xc8, 0x10, 0, 0}},
        {"far return", {0xcb, 0, 0, 0}},
        {"system call", {0x0f, 0x05, 0, 0}},
        {"EVEX", {0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc0}},
        {"three-byte opcode", {0x66, 0x0f, 0x38, 0x00, 0xc1}},
        {"near call with operand size", {0x66, 0xe8, 0, 0, 0, 0}},
        {"lock without memory", {0xf0, 0x48, 0x01, 0xc0}},
        {"lock on a move", {0xf0, 0x48, 0x89, 0x07}},
        {"lea of a register", {0x48, 0x8d, 0xc0}},
        {"both repeat prefixes", {0xf2, 0xf3, 0xa4, 0}},
        {"REX before a prefix", {0x48, 0x66, 0x89, 0xc0}},
        {"eip-relative", {0x67, 0x8d, 0x05, 0, 0, 0, 0}},
        {"undefined group member", {0xff, 0xf8, 0, 0}},
        {"vmovd of 256 bits", {0xc5, 0xfd, 0x6e, 0xc0}},
        {"VEX with one source too many", {0xc5, 0xf1, 0x6f, 0xc0}},
        {"longer than 15 bytes",
         {0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
          0x90}},
    };
    for (const auto &test : cases) {
        lamprey_x86_instruction instruction;
        instruction.length = 77;
        EXPECT_EQ(lamprey_x86_decode(test.code.data(), test.code.size(), &instruction), 0u)
            << test.what;
        EXPECT_EQ(instruction.length, 77) << "written though refused: " << test.what;
    }
}

TEST(Decode, AgreesWithZydisOnRandomBytes)
{
    const std::vector<std::vector<uint8_t>> starts = {
        {},           {0x66},       {0x48},       {0x0f},
        {0x66, 0x0f}, {0xf3, 0x0f}, {0xf2, 0x0f}, {0xc5},
        {0x41},       {0xf0, 0x48}, {0x4c, 0x0f}, {0x67},
        {0xc4, 0xe1}, {0xf3},       {0x64},       {0x66, 0x45, 0x0f}};
    std::mt19937_64 random(20240229);
    Reference reference;
    size_t accepted = 0;
    for (int i = 0; i < 3000000; i++) {
        uint8_t code[16];
        const uint64_t words[2] = {random(), random()};
        memcpy(code, words, sizeof(code));
        const std::vector<uint8_t> &start = starts[static_cast<size_t>(i) % starts.size()];
        std::copy(start.begin(), start.end(), code);
        lamprey_x86_instruction ours;
        if (lamprey_x86_decode(code, sizeof(code), &ours) == 0) {
            continue;
        }
        ++accepted;
        ASSERT_TRUE(reference.Decode(code, sizeof(code))) << Hex(code, ours.length);
        ASSERT_EQ(reference.Compare(ours), "") << Hex(code, 15);
    }
    EXPECT_GT(accepted, 1000000u);
}

std::string NcclPath()
{
    const char *home = getenv("CUDA_HOME");
    const char *named = getenv("LAMPREY_TEST_NCCL");
    for (const std::string &path :
         {std::string(named != nullptr ? named : ""),
          std::string(home != nullptr ? home : "") + "/lib/libnccl.so.2",
          std::string(home != nullptr ? home : "") + "/lib64/libnccl.so.2",
          std::string("/usr/local/cuda/lib/libnccl.so.2"),
          std::string("/usr/local/cuda/lib64/libnccl.so.2")}) {
        if (!path.empty() && access(path.c_str(), R_OK) == 0) {
            return path;
        }
    }
    return "";
}

// All functions that the library exports, from its own symbol table.
std::vector<std::string> ExportedFunctions(const lamprey_image &image)
{
    std::vector<std::string> names;
    // The end of the symbol table is the start of the string table in every linker's output.
    const auto *symbol = static_cast<const ElfW(Sym) *>(image.symtab);
    const auto *end = reinterpret_cast<const ElfW(Sym) *>(image.strtab);
    for (; symbol + 1 <= end; symbol++) {
        if (symbol->st_shndx != SHN_UNDEF && ELF64_ST_TYPE(symbol->st_info) == STT_FUNC) {
            names.push_back(image.strtab + symbol->st_name);
        }
    }
    return names;
}

TEST(Decode, AgreesWithZydisOnEveryFunctionOfNccl)
{
    const std::string path = NcclPath();
    if (path.empty()) {
        GTEST_SKIP() << "no libnccl.so.2 in LAMPREY_TEST_NCCL, CUDA_HOME or /usr/local/cuda";
    }
    void *library = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL);
    ASSERT_NE(library, nullptr) << dlerror();
    lamprey_image image;
    ASSERT_EQ(lamprey_image_of(dlsym(library, "ncclAllReduce"), &image), LAMPREY_OK);
    const std::vector<std::string> names = ExportedFunctions(image);
    ASSERT_GE(names.size(), 80u);
    Reference reference;
    size_t instructions = 0;
    size_t unknown = 0;
    for (const std::string &name : names) {
        SCOPED_TRACE(name);
        size_t size = 0;
        const auto *code =
            static_cast<const uint8_t *>(lamprey_image_symbol(&image, name.c_str(), &size));
        ASSERT_NE(code, nullptr);
        // The prologue must be known; the rest of the function may hold what isn't, but never what
        // is read wrongly.
        for (size_t offset = 0; offset < size; offset += reference.Length()) {
            lamprey_x86_instruction ours;
            ASSERT_TRUE(reference.Decode(code + offset, size - offset)) << offset;
            ++instructions;
            if (lamprey_x86_decode(code + offset, size - offset, &ours) == 0) {
                EXPECT_GE(offset, 64u) << Hex(code + offset, reference.Length());
                ++unknown;
                continue;
            }
            EXPECT_EQ(reference.Compare(ours), "") << Hex(code + offset, reference.Length());
        }
    }
    RecordProperty("instructions", std::to_string(instructions));
    RecordProperty("unknown", std::to_string(unknown));
    printf("%zu functions, %zu instructions, %zu not known\n", names.size(), instructions, unknown);
    EXPECT_LT(unknown * 50, instructions);
}

} // namespace
