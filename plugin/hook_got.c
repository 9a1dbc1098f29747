/* SPDX-License-Identifier: Apache-2.0 */
/* Redirection by the slots through which loaded objects reach the function: those of PLT and GOT,
 * and pointers in initialised data (R_X86_64_64, R_AARCH64_ABS64), as long as they hold the
 * function's own address.
 *
 * Two objects keep their slots. This library's, which means NCCL when it names NCCL. And those of
 * the image itself: NCCL calls a few of its own public functions from inside others, where the
 * outer call has already been seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/hook_memory.h"
#include "plugin/hook_methods.h"
#include "plugin/image.h"
#include "plugin/log.h"

#if defined(__x86_64__)
enum { JUMP_SLOT = R_X86_64_JUMP_SLOT, GLOB_DAT = R_X86_64_GLOB_DAT, ABSOLUTE = R_X86_64_64 };
#elif defined(__aarch64__)
enum { JUMP_SLOT = R_AARCH64_JUMP_SLOT, GLOB_DAT = R_AARCH64_GLOB_DAT, ABSOLUTE = R_AARCH64_ABS64 };
#endif

/* One loaded object's dynamic section. */
struct object {
    const char *name;
    uintptr_t base;
    uintptr_t start;
    uintptr_t end;
    const ElfW(Sym) * symtab;
    const char *strtab;
    const char *soname;
    const ElfW(Dyn) * dynamic;
    const ElfW(Rela) * tables[2]; /* DT_JMPREL, DT_RELA */
    size_t counts[2];
};

struct scan {
    struct lamprey_hooks *hooks;
    struct lamprey_hook_memory *memory;
    bool restoring;
    uintptr_t own;        /* an address in this library */
    uintptr_t *bases;     /* per entry: the object that has the function */
    const char **sonames; /* per entry: its SONAME or NULL */
    bool *is_first;       /* per entry: it is the first object of that SONAME */
    void **global;        /* per entry: what the name means in the global scope, or NULL */
    enum lamprey_status status;
    char *reason;
    size_t reason_size;
};

static uintptr_t pointer_of(const struct object *object, uintptr_t value)
{
    return value >= object->start && value < object->end ? value : value + object->base;
}

static void read_dynamic(struct object *object)
{
    size_t sizes[2] = {0, 0};
    uintptr_t soname = UINTPTR_MAX;
    for (const ElfW(Dyn) *entry = object->dynamic; entry->d_tag != DT_NULL; entry++) {
        uintptr_t value = entry->d_un.d_val;
        switch (entry->d_tag) {
        case DT_SYMTAB:
            object->symtab = (const void *)pointer_of(object, value);
            break;
        case DT_STRTAB:
            object->strtab = (const void *)pointer_of(object, value);
            break;
        case DT_JMPREL:
            object->tables[0] = (const void *)pointer_of(object, value);
            break;
        case DT_PLTRELSZ:
            sizes[0] = value;
            break;
        case DT_RELA:
            object->tables[1] = (const void *)pointer_of(object, value);
            break;
        case DT_RELASZ:
            sizes[1] = value;
            break;
        case DT_SONAME:
            soname = value;
            break;
        default:
            break;
        }
    }
    for (size_t i = 0; i < 2; i++) {
        object->counts[i] = object->tables[i] == NULL ? 0 : sizes[i] / sizeof(ElfW(Rela));
    }
    if (soname != UINTPTR_MAX && object->strtab != NULL) {
        object->soname = object->strtab + soname;
    }
}

static bool read_object(const struct dl_phdr_info *info, struct object *object)
{
    *object = (struct object){.name = info->dlpi_name, .base = info->dlpi_addr};
    object->start = UINTPTR_MAX;
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + header->p_vaddr;
        if (header->p_type == PT_DYNAMIC) {
            object->dynamic = (const void *)start;
        } else if (header->p_type == PT_LOAD) {
            object->start = start < object->start ? start : object->start;
            object->end =
                start + header->p_memsz > object->end ? start + header->p_memsz : object->end;
        }
    }
    if (object->dynamic == NULL) {
        return false;
    }
    read_dynamic(object);
    return object->symtab != NULL && object->strtab != NULL;
}

static bool needs(const struct object *object, const char *soname)
{
    for (const ElfW(Dyn) *entry = object->dynamic; soname != NULL && entry->d_tag != DT_NULL;
         entry++) {
        if (entry->d_tag == DT_NEEDED && strcmp(object->strtab + entry->d_un.d_val, soname) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_recorded(const struct lamprey_hooks *hooks, void **slot)
{
    for (size_t i = 0; i < hooks->slot_count; i++) {
        if (hooks->slots[i].slot == slot) {
            return true;
        }
    }
    return false;
}

static bool record(struct lamprey_hooks *hooks, void **slot, size_t entry)
{
    if (hooks->slot_count == hooks->slot_capacity) {
        size_t capacity = hooks->slot_capacity * 2 + 16;
        struct lamprey_hook_slot *slots = realloc(hooks->slots, capacity * sizeof(*slots));
        if (slots == NULL) {
            return false;
        }
        hooks->slots = slots;
        hooks->slot_capacity = capacity;
    }
    hooks->slots[hooks->slot_count++] = (struct lamprey_hook_slot){slot, entry};
    return true;
}

/* Would a slot that is still unbound lead to the function? It then holds an address in its own
 * object that is not the object's own definition. Nothing is looked up through the loader, whose
 * locks are held here: the global scope was asked before, and the object's own dependencies follow
 * it. What this misses is found by the next refresh, once it is bound. */
static bool will_bind(const struct scan *scan, const struct object *object,
                      const ElfW(Sym) * symbol, size_t entry, uintptr_t value)
{
    if (value < object->start || value >= object->end ||
        (symbol->st_shndx != SHN_UNDEF && value == object->base + symbol->st_value)) {
        return false;
    }
    if (scan->global[entry] != NULL) {
        return scan->global[entry] == (void *)scan->hooks->entries[entry].function;
    }
    return needs(object, scan->sonames[entry]);
}

static void visit_slot(struct scan *scan, const struct object *object,
                       const ElfW(Rela) * relocation, size_t index)
{
    const ElfW(Sym) *symbol = &object->symtab[ELF64_R_SYM(relocation->r_info)];
    bool lazy = ELF64_R_TYPE(relocation->r_info) == JUMP_SLOT;
    void **slot = (void **)(object->base + relocation->r_offset);
    struct lamprey_hook_entry *entry = &scan->hooks->entries[index];
    if (object->base == scan->bases[index] || (uintptr_t)slot % sizeof(*slot) != 0) {
        return;
    }
    void *value = __atomic_load_n(slot, __ATOMIC_ACQUIRE);
    if (scan->restoring) {
        if (value == entry->replacement && is_recorded(scan->hooks, slot) &&
            !lamprey_hook_memory_store(scan->memory, slot, entry->function)) {
            lamprey_warn("%s: the slot of %s can't be restored: %s", object->name, entry->name,
                         strerror(errno));
        }
        return;
    }
    if (value != (void *)entry->function &&
        !(lazy && will_bind(scan, object, symbol, index, (uintptr_t)value))) {
        return;
    }
    /* An object that was loaded where another one lay has the same slots. */
    if (!is_recorded(scan->hooks, slot) && !record(scan->hooks, slot, index)) {
        snprintf(scan->reason, scan->reason_size, "%s: out of memory", entry->name);
        scan->status = LAMPREY_ERROR_MEMORY;
        return;
    }
    if (!lamprey_hook_memory_store(scan->memory, slot, entry->replacement)) {
        snprintf(scan->reason, scan->reason_size, "%s: the slot in %s can't be written (%s)",
                 entry->name, object->name, strerror(errno));
        scan->status = LAMPREY_ERROR_SYSTEM;
    }
}

static void visit_relocation(struct scan *scan, const struct object *object,
                             const ElfW(Rela) * relocation)
{
    unsigned long type = ELF64_R_TYPE(relocation->r_info);
    unsigned long symbol = ELF64_R_SYM(relocation->r_info);
    if (symbol == 0 || (type != JUMP_SLOT && type != GLOB_DAT && type != ABSOLUTE) ||
        (type == ABSOLUTE && relocation->r_addend != 0)) {
        return;
    }
    const char *name = object->strtab + object->symtab[symbol].st_name;
    for (size_t i = 0; i < scan->hooks->count; i++) {
        if (strcmp(name, scan->hooks->entries[i].name) == 0) {
            visit_slot(scan, object, relocation, i);
        }
    }
}

static int visit_object(struct dl_phdr_info *info, size_t size, void *context)
{
    (void)size;
    struct scan *scan = context;
    struct object object;
    if (!read_object(info, &object) || (scan->own >= object.start && scan->own < object.end)) {
        return 0;
    }
    for (size_t table = 0; table < 2; table++) {
        for (size_t i = 0; i < object.counts[table] && scan->status == LAMPREY_OK; i++) {
            visit_relocation(scan, &object, &object.tables[table][i]);
        }
    }
    return scan->status != LAMPREY_OK;
}

static int visit_images(struct dl_phdr_info *info, size_t size, void *context)
{
    (void)size;
    struct scan *scan = context;
    struct object object;
    if (!read_object(info, &object)) {
        return 0;
    }
    for (size_t i = 0; i < scan->hooks->count; i++) {
        uintptr_t function = (uintptr_t)scan->hooks->entries[i].function;
        if (function >= object.start && function < object.end) {
            scan->bases[i] = object.base;
            scan->sonames[i] = object.soname;
        }
    }
    return 0;
}

/* An object that needs a name gets the first loaded one of that name. Where that is another NCCL
 * than this, unbound slots are left alone. */
static int visit_namesakes(struct dl_phdr_info *info, size_t size, void *context)
{
    (void)size;
    struct scan *scan = context;
    struct object object;
    if (!read_object(info, &object) || object.soname == NULL) {
        return 0;
    }
    for (size_t i = 0; i < scan->hooks->count; i++) {
        if (scan->sonames[i] != NULL && !scan->is_first[i] &&
            strcmp(object.soname, scan->sonames[i]) == 0) {
            scan->is_first[i] = object.base == scan->bases[i];
            scan->sonames[i] = scan->is_first[i] ? scan->sonames[i] : NULL;
        }
    }
    return 0;
}

/* What each name means to the main program and all that was loaded RTLD_GLOBAL. */
static void ask_global_scope(struct scan *scan)
{
    void *program = dlopen(NULL, RTLD_LAZY);
    if (program == NULL) {
        return;
    }
    for (size_t i = 0; i < scan->hooks->count; i++) {
        scan->global[i] = dlsym(program, scan->hooks->entries[i].name);
    }
    dlclose(program);
}

static enum lamprey_status run_scan(struct lamprey_hooks *hooks, bool restoring, char *reason,
                                    size_t reason_size)
{
    struct lamprey_hook_memory memory;
    struct scan scan = {.hooks = hooks,
                        .memory = &memory,
                        .restoring = restoring,
                        .own = (uintptr_t)&lamprey_hook_got_install,
                        .status = LAMPREY_OK,
                        .reason = reason,
                        .reason_size = reason_size};
    enum lamprey_status status = LAMPREY_OK;
    scan.bases = calloc(hooks->count, sizeof(*scan.bases));
    scan.sonames = calloc(hooks->count, sizeof(*scan.sonames));
    scan.is_first = calloc(hooks->count, sizeof(*scan.is_first));
    scan.global = calloc(hooks->count, sizeof(*scan.global));
    lamprey_hook_memory_open(&memory);
    if (scan.bases == NULL || scan.sonames == NULL || scan.is_first == NULL ||
        scan.global == NULL) {
        snprintf(reason, reason_size, "out of memory");
        status = LAMPREY_ERROR_MEMORY;
    } else {
        ask_global_scope(&scan);
        dl_iterate_phdr(visit_images, &scan);
        dl_iterate_phdr(visit_namesakes, &scan);
        dl_iterate_phdr(visit_object, &scan);
        status = scan.status;
    }
    free(scan.bases);
    free(scan.sonames);
    free(scan.is_first);
    free(scan.global);
    lamprey_hook_memory_close(&memory);
    return status;
}

enum lamprey_status lamprey_hook_got_install(struct lamprey_hooks *hooks, char *reason,
                                             size_t reason_size)
{
    for (size_t i = 0; i < hooks->count; i++) {
        __atomic_store_n(hooks->entries[i].original, (void *)hooks->entries[i].function,
                         __ATOMIC_RELEASE);
    }
    enum lamprey_status status = run_scan(hooks, false, reason, reason_size);
    if (status != LAMPREY_OK) {
        lamprey_hook_got_remove(hooks);
    }
    return status;
}

enum lamprey_status lamprey_hook_got_refresh(struct lamprey_hooks *hooks, char *reason,
                                             size_t reason_size)
{
    return run_scan(hooks, false, reason, reason_size);
}

void lamprey_hook_got_remove(struct lamprey_hooks *hooks)
{
    char reason[160];
    if (run_scan(hooks, true, reason, sizeof(reason)) != LAMPREY_OK) {
        lamprey_warn("redirected slots can't be restored: %s", reason);
    }
}
