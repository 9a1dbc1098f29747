// SPDX-License-Identifier: Apache-2.0
// What a shared object's file says of itself to the loader.
#ifndef LAMPREY_TESTS_DOORS_ELF_FILE_H
#define LAMPREY_TESTS_DOORS_ELF_FILE_H

#include <elf.h>
#include <link.h>

#include <fstream>
#include <iterator>
#include <set>
#include <stdexcept>
#include <string>

class ElfFile {
  public:
    explicit ElfFile(const std::string &path)
    {
        std::ifstream file(path, std::ios::binary);
        bytes_.assign(std::istreambuf_iterator<char>(file), {});
        if (bytes_.size() < sizeof(ElfW(Ehdr)) || bytes_.compare(0, SELFMAG, ELFMAG) != 0) {
            throw std::runtime_error(path + " is no ELF file");
        }
    }

    // Dynamic symbols that are defined here.
    std::set<std::string> exports() const
    {
        std::set<std::string> names;
        const auto *symbols = section(SHT_DYNSYM);
        const char *strings = strings_of(*symbols);
        for (size_t i = 1; i < symbols->sh_size / sizeof(ElfW(Sym)); i++) {
            const auto *symbol = at<ElfW(Sym)>(symbols->sh_offset + i * sizeof(ElfW(Sym)));
            if (symbol->st_shndx != SHN_UNDEF) {
                names.insert(strings + symbol->st_name);
            }
        }
        return names;
    }

    std::set<std::string> needed() const
    {
        std::set<std::string> names;
        const auto *dynamic_section = section(SHT_DYNAMIC);
        for_each_dynamic([&](const ElfW(Dyn) & entry) {
            if (entry.d_tag == DT_NEEDED) {
                names.insert(strings_of(*dynamic_section) + entry.d_un.d_val);
            }
        });
        return names;
    }

    std::set<std::string> needed_versions() const
    {
        std::set<std::string> names;
        const auto *needs = section(SHT_GNU_verneed);
        size_t offset = needs->sh_offset;
        for (unsigned i = 0; i < needs->sh_info; i++) {
            const auto *need = at<ElfW(Verneed)>(offset);
            size_t inner = offset + need->vn_aux;
            for (int j = 0; j < need->vn_cnt; j++) {
                const auto *version = at<ElfW(Vernaux)>(inner);
                names.insert(strings_of(*needs) + version->vna_name);
                inner += version->vna_next;
            }
            offset += need->vn_next;
        }
        return names;
    }

    bool has_dynamic(ElfW(Sxword) tag) const
    {
        bool found = false;
        for_each_dynamic([&](const ElfW(Dyn) & entry) { found |= entry.d_tag == tag; });
        return found;
    }

    // 0 if there is no such entry.
    ElfW(Xword) dynamic(ElfW(Sxword) tag) const
    {
        ElfW(Xword) value = 0;
        for_each_dynamic([&](const ElfW(Dyn) & entry) {
            if (entry.d_tag == tag) {
                value = entry.d_un.d_val;
            }
        });
        return value;
    }

  private:
    template <typename T> const T *at(size_t offset) const
    {
        if (offset + sizeof(T) > bytes_.size()) {
            throw std::runtime_error("ELF file is cut short");
        }
        return reinterpret_cast<const T *>(bytes_.data() + offset);
    }

    const ElfW(Shdr) * section_at(size_t index) const
    {
        const auto *header = at<ElfW(Ehdr)>(0);
        return at<ElfW(Shdr)>(header->e_shoff + index * header->e_shentsize);
    }

    const ElfW(Shdr) * section(ElfW(Word) type) const
    {
        for (size_t i = 0; i < at<ElfW(Ehdr)>(0)->e_shnum; i++) {
            if (section_at(i)->sh_type == type) {
                return section_at(i);
            }
        }
        throw std::runtime_error("ELF file lacks a section of type " + std::to_string(type));
    }

    const char *strings_of(const ElfW(Shdr) & other) const
    {
        return at<char>(section_at(other.sh_link)->sh_offset);
    }

    template <typename Visitor> void for_each_dynamic(Visitor visit) const
    {
        const auto *dynamic_section = section(SHT_DYNAMIC);
        for (size_t i = 0; i < dynamic_section->sh_size / sizeof(ElfW(Dyn)); i++) {
            visit(*at<ElfW(Dyn)>(dynamic_section->sh_offset + i * sizeof(ElfW(Dyn))));
        }
    }

    std::string bytes_;
};

#endif
