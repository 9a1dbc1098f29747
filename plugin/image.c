/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "plugin/image.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Where an object lies, from its program headers. end is 0 where only the link map is known. */
struct extent {
    uintptr_t start;
    uintptr_t end;
};

struct search {
    uintptr_t address;
    struct lamprey_image *image;
    bool found;
};

static struct extent extent_of(const struct dl_phdr_info *info)
{
    struct extent extent = {UINTPTR_MAX, 0};
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        if (header->p_type != PT_LOAD) {
            continue;
        }
        uintptr_t start = info->dlpi_addr + header->p_vaddr;
        extent.start = start < extent.start ? start : extent.start;
        extent.end = start + header->p_memsz > extent.end ? start + header->p_memsz : extent.end;
    }
    return extent;
}

static bool contains(const struct dl_phdr_info *info, uintptr_t address)
{
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + header->p_vaddr;
        if (header->p_type == PT_LOAD && address >= start && address - start < header->p_memsz) {
            return true;
        }
    }
    return false;
}

static const ElfW(Dyn) * dynamic_of(const struct dl_phdr_info *info)
{
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type == PT_DYNAMIC) {
            return (const ElfW(Dyn) *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
        }
    }
    return NULL;
}

/* glibc turns most d_ptr values into addresses in place, musl and read-only dynamic sections keep
 * them relative to the load bias. */
static const void *pointer_of(uintptr_t base, struct extent extent, uintptr_t value)
{
    if (extent.end == 0) {
        return (const void *)(value >= base ? value : base + value);
    }
    if (value >= extent.start && value < extent.end) {
        return (const void *)value;
    }
    value += base;
    return value >= extent.start && value < extent.end ? (const void *)value : NULL;
}

static void read_dynamic(const ElfW(Dyn) * dynamic, struct extent extent,
                         struct lamprey_image *image)
{
    for (; dynamic != NULL && dynamic->d_tag != DT_NULL; dynamic++) {
        const void *pointer = pointer_of(image->base, extent, dynamic->d_un.d_ptr);
        switch (dynamic->d_tag) {
        case DT_SYMTAB:
            image->symtab = pointer;
            break;
        case DT_STRTAB:
            image->strtab = pointer;
            break;
        case DT_GNU_HASH:
            image->gnu_hash = pointer;
            break;
        case DT_HASH:
            image->sysv_hash = pointer;
            break;
        default:
            break;
        }
    }
}

static void set_path(struct lamprey_image *image, const char *name)
{
    if (name != NULL && name[0] != '\0') {
        strncpy(image->path, name, sizeof(image->path) - 1);
        return;
    }
    ssize_t length = readlink("/proc/self/exe", image->path, sizeof(image->path) - 1);
    image->path[length > 0 ? length : 0] = '\0';
}

static void fill(const struct dl_phdr_info *info, struct lamprey_image *image)
{
    memset(image, 0, sizeof(*image));
    image->base = info->dlpi_addr;
    set_path(image, info->dlpi_name);
    read_dynamic(dynamic_of(info), extent_of(info), image);
}

static int visit_search(struct dl_phdr_info *info, size_t size, void *context)
{
    (void)size;
    struct search *search = context;
    if (!contains(info, search->address)) {
        return 0;
    }
    fill(info, search->image);
    search->found = true;
    return 1;
}

/* dl_iterate_phdr sees the caller's namespace only; an image of another one (dlmopen) still has a
 * link map. */
static bool find_by_link_map(const void *address, struct lamprey_image *image)
{
#ifdef __GLIBC__
    Dl_info info;
    struct link_map *map = NULL;
    if (dladdr1(address, &info, (void **)&map, RTLD_DL_LINKMAP) == 0 || map == NULL) {
        return false;
    }
    memset(image, 0, sizeof(*image));
    image->base = map->l_addr;
    set_path(image, map->l_name);
    read_dynamic(map->l_ld, (struct extent){0, 0}, image);
    return true;
#else
    (void)address;
    (void)image;
    return false;
#endif
}

enum lamprey_status lamprey_image_find(const void *address, struct lamprey_image *image)
{
    struct lamprey_image found;
    struct search search = {(uintptr_t)address, &found, false};
    dl_iterate_phdr(visit_search, &search);
    if (!search.found && !find_by_link_map(address, &found)) {
        return LAMPREY_ERROR_INVALID;
    }
    *image = found;
    return LAMPREY_OK;
}

/* The loader finds objects by name, so what it gives back may be a namesake of another namespace.
 */
static void *hold(const struct lamprey_image *image)
{
    void *handle = dlopen(image->path, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
    struct link_map *map = NULL;
    if (handle == NULL) {
        dlerror();
        return NULL;
    }
    if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || map->l_addr != image->base) {
        dlclose(handle);
        return NULL;
    }
    return handle;
}

enum lamprey_status lamprey_image_of(const void *address, struct lamprey_image *image)
{
    struct lamprey_image found;
    struct lamprey_image again;
    enum lamprey_status status = lamprey_image_find(address, &found);
    if (status != LAMPREY_OK) {
        return status;
    }
    void *handle = hold(&found);
    /* Another thread may have closed the object before we held it, and something else may lie
     * there now. */
    status = lamprey_image_find(address, &again);
    if (status != LAMPREY_OK || again.base != found.base || strcmp(again.path, found.path) != 0) {
        if (handle != NULL) {
            dlclose(handle);
        }
        return LAMPREY_ERROR_INVALID;
    }
    again.handle = handle;
    *image = again;
    return LAMPREY_OK;
}

static const ElfW(Sym) * accept(const struct lamprey_image *image, uint32_t index, const char *name)
{
    const ElfW(Sym) *symbol = (const ElfW(Sym) *)image->symtab + index;
    unsigned char bind = ELF64_ST_BIND(symbol->st_info);
    /* STT_GNU_IFUNC is left out on purpose: its value is a resolver, not the function. */
    if (symbol->st_shndx == SHN_UNDEF || symbol->st_value == 0 ||
        ELF64_ST_TYPE(symbol->st_info) != STT_FUNC || (bind != STB_GLOBAL && bind != STB_WEAK)) {
        return NULL;
    }
    return strcmp(image->strtab + symbol->st_name, name) == 0 ? symbol : NULL;
}

static const ElfW(Sym) * search_gnu_hash(const struct lamprey_image *image, const char *name)
{
    const uint32_t *table = image->gnu_hash;
    uint32_t nbuckets = table[0];
    uint32_t first = table[1];
    uint32_t bloom_words = table[2];
    const uint32_t *buckets = table + 4 + bloom_words * (sizeof(ElfW(Addr)) / sizeof(uint32_t));
    const uint32_t *chain = buckets + nbuckets;
    uint32_t hash = 5381;
    for (const unsigned char *byte = (const unsigned char *)name; *byte != '\0'; byte++) {
        hash = hash * 33 + *byte;
    }
    if (nbuckets == 0 || buckets[hash % nbuckets] < first) {
        return NULL;
    }
    for (uint32_t index = buckets[hash % nbuckets];; index++) {
        uint32_t entry = chain[index - first];
        if ((entry | 1) == (hash | 1)) {
            const ElfW(Sym) *symbol = accept(image, index, name);
            if (symbol != NULL) {
                return symbol;
            }
        }
        if (entry & 1) {
            return NULL;
        }
    }
}

static const ElfW(Sym) * search_sysv_hash(const struct lamprey_image *image, const char *name)
{
    const uint32_t *table = image->sysv_hash;
    uint32_t nbuckets = table[0];
    const uint32_t *buckets = table + 2;
    const uint32_t *chain = buckets + nbuckets;
    uint32_t hash = 0;
    for (const unsigned char *byte = (const unsigned char *)name; *byte != '\0'; byte++) {
        hash = (hash << 4) + *byte;
        hash = (hash ^ (hash >> 24 & 0xf0)) & 0x0fffffff;
    }
    for (uint32_t index = nbuckets == 0 ? STN_UNDEF : buckets[hash % nbuckets]; index != STN_UNDEF;
         index = chain[index]) {
        const ElfW(Sym) *symbol = accept(image, index, name);
        if (symbol != NULL) {
            return symbol;
        }
    }
    return NULL;
}

void *lamprey_image_symbol(const struct lamprey_image *image, const char *name, size_t *size)
{
    const ElfW(Sym) *symbol = NULL;
    if (image->symtab == NULL || image->strtab == NULL || name == NULL) {
        return NULL;
    }
    if (image->gnu_hash != NULL) {
        symbol = search_gnu_hash(image, name);
    } else if (image->sysv_hash != NULL) {
        symbol = search_sysv_hash(image, name);
    }
    if (symbol == NULL) {
        return NULL;
    }
    *size = symbol->st_size;
    return (void *)(image->base + symbol->st_value);
}

void *lamprey_image_function(const struct lamprey_image *image, const char *name)
{
    size_t size;
    return lamprey_image_symbol(image, name, &size);
}

struct collection {
    uintptr_t own_address;
    void **functions; /* ncclAllReduce of each image found */
    size_t count;
    size_t capacity;
};

static int visit_collect(struct dl_phdr_info *info, size_t size, void *context)
{
    (void)size;
    struct collection *collection = context;
    struct lamprey_image image;
    if (contains(info, collection->own_address)) {
        return 0;
    }
    fill(info, &image);
    void *function = lamprey_image_function(&image, "ncclAllReduce");
    if (function == NULL || lamprey_image_function(&image, "ncclGetVersion") == NULL) {
        return 0;
    }
    if (collection->count == collection->capacity) {
        size_t capacity = collection->capacity * 2 + 4;
        void **functions = realloc(collection->functions, capacity * sizeof(*functions));
        if (functions == NULL) {
            return 1;
        }
        collection->functions = functions;
        collection->capacity = capacity;
    }
    collection->functions[collection->count++] = function;
    return 0;
}

void lamprey_image_each_nccl(int (*visit)(const struct lamprey_image *image, void *context),
                             void *context)
{
    struct collection collection = {(uintptr_t)&lamprey_image_each_nccl, NULL, 0, 0};
    /* Collected first: visit may load libraries, which must not happen under the loader's list. */
    dl_iterate_phdr(visit_collect, &collection);
    for (size_t i = 0; i < collection.count; i++) {
        struct lamprey_image image;
        if (lamprey_image_of(collection.functions[i], &image) == LAMPREY_OK &&
            lamprey_image_function(&image, "ncclAllReduce") == collection.functions[i] &&
            visit(&image, context) != 0) {
            break;
        }
    }
    free(collection.functions);
}
