/* SPDX-License-Identifier: Apache-2.0 */
#include "topology/read.h"

#include <errno.h>
#include <hwloc/distances.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "topology/attributes.h"
#include "topology/pci.h"
#include "topology/tree.h"

/* What is being read: for the reasons, and for the parts that a record doesn't keep. */
struct reader {
    hwloc_topology_t tree;
    const struct lamprey_reason *reason;
    struct lamprey_machine *machine;
    struct lamprey_tree_gpu *gpus; /* as machine->gpus */
    bool has_matrix;
    uint32_t *mbps; /* ngpus x ngpus, 0 without a matrix */
    bool *covered;  /* by the matrix */
    size_t *row;    /* the GPU that each of the matrix's rows is about */
};

static int malformed(const struct reader *reader, size_t gpu, const char *name, const char *value)
{
    char text[LAMPREY_PCI_TEXT];
    return lamprey_reason_give(reader->reason, EIO, "GPU %s: %s makes no sense (\"%s\")",
                               lamprey_pci_text(reader->gpus[gpu].pci_id, text), name, value);
}

static const char *attribute(const struct reader *reader, size_t gpu, const char *name)
{
    return hwloc_obj_get_info_by_name(reader->gpus[gpu].object, name);
}

/* Leaves value alone where the attribute is absent. */
static int read_u32(const struct reader *reader, size_t gpu, const char *name, uint32_t *value)
{
    const char *text = attribute(reader, gpu, name);
    if (text == NULL) {
        return 0;
    }
    int base = strncmp(text, "0x", 2) == 0 ? 16 : 10;
    const char *digits = base == 16 ? text + 2 : text;
    char *end = NULL;
    errno = 0;
    unsigned long long number = strtoull(digits, &end, base);
    if (!isxdigit((unsigned char)digits[0]) || *end != '\0' || errno != 0 || number > UINT32_MAX) {
        return malformed(reader, gpu, name, text);
    }
    *value = (uint32_t)number;
    return 0;
}

static int read_text(const struct reader *reader, size_t gpu, const char *name, char *value,
                     size_t size)
{
    const char *text = attribute(reader, gpu, name);
    if (text != NULL && (size_t)snprintf(value, size, "%s", text) >= size) {
        return malformed(reader, gpu, name, text);
    }
    return 0;
}

static int read_cluster(const struct reader *reader, size_t gpu, uint8_t uuid[16])
{
    const char *text = attribute(reader, gpu, LAMPREY_ATTRIBUTE_FABRIC_UUID);
    if (text == NULL) {
        return 0;
    }
    if (strlen(text) != 32 || strspn(text, "0123456789abcdefABCDEF") != 32) {
        return malformed(reader, gpu, LAMPREY_ATTRIBUTE_FABRIC_UUID, text);
    }
    for (size_t i = 0; i < 16; i++) {
        char byte[3] = {text[2 * i], text[2 * i + 1], '\0'};
        uuid[i] = (uint8_t)strtoul(byte, NULL, 16);
    }
    return 0;
}

static int read_kind(const struct reader *reader, size_t gpu, struct lamprey_gpu_links *links)
{
    const char *remote = attribute(reader, gpu, LAMPREY_ATTRIBUTE_REMOTE);
    if (attribute(reader, gpu, LAMPREY_ATTRIBUTE_LINKS_ACTIVE) == NULL || remote == NULL) {
        links->kind = LAMPREY_NVLINK_UNKNOWN;
        return 0;
    }
    bool none = strcmp(remote, "none") == 0;
    if (none != (links->links_active == 0)) {
        return malformed(reader, gpu, LAMPREY_ATTRIBUTE_REMOTE, remote);
    }
    if (none) {
        links->kind = LAMPREY_NVLINK_NONE;
    } else if (strcmp(remote, "switch") == 0) {
        links->kind = LAMPREY_NVLINK_SWITCH;
    } else if (strcmp(remote, "gpu") == 0 || strcmp(remote, "mixed") == 0) {
        links->kind = LAMPREY_NVLINK_DIRECT;
    } else {
        return malformed(reader, gpu, LAMPREY_ATTRIBUTE_REMOTE, remote);
    }
    return 0;
}

static int near_numa(const struct reader *reader, size_t gpu)
{
    hwloc_obj_t ancestor =
        hwloc_get_non_io_ancestor_obj(reader->tree, reader->gpus[gpu].object->parent);
    int found = -1;
    for (hwloc_obj_t node = NULL;
         ancestor != NULL && ancestor->nodeset != NULL &&
         (node = hwloc_get_next_obj_by_type(reader->tree, HWLOC_OBJ_NUMANODE, node)) != NULL;) {
        /* A GPU's own memory may be a NUMA node too. */
        bool memory_of_gpu = node->subtype != NULL && strcmp(node->subtype, "GPUMemory") == 0;
        if (!memory_of_gpu && hwloc_bitmap_isset(ancestor->nodeset, node->os_index)) {
            if (found >= 0) {
                return -1;
            }
            found = (int)node->os_index;
        }
    }
    return found;
}

static int read_gpu(const struct reader *reader, size_t gpu)
{
    struct lamprey_machine_gpu *out = &reader->machine->gpus[gpu];
    struct lamprey_gpu_links *links = &out->links;
    const struct {
        const char *name;
        uint32_t *value;
    } numbers[] = {
        {LAMPREY_ATTRIBUTE_LINKS_ACTIVE, &links->links_active},
        {LAMPREY_ATTRIBUTE_LINK_MBPS, &links->link_mbps},
        {LAMPREY_ATTRIBUTE_MIG, &links->mig},
        {LAMPREY_ATTRIBUTE_FABRIC_STATE, &links->fabric_state},
        {LAMPREY_ATTRIBUTE_FABRIC_STATUS, &links->fabric_status},
        {LAMPREY_ATTRIBUTE_FABRIC_CLIQUE, &links->fabric_clique},
        {LAMPREY_ATTRIBUTE_FABRIC_HEALTH, &links->fabric_health},
        {LAMPREY_ATTRIBUTE_CHASSIS, &links->chassis},
    };

    out->pci_id = reader->gpus[gpu].pci_id;
    out->numa = near_numa(reader, gpu);
    int result = 0;
    for (size_t i = 0; result == 0 && i < sizeof(numbers) / sizeof(*numbers); i++) {
        result = read_u32(reader, gpu, numbers[i].name, numbers[i].value);
    }
    if (result == 0) {
        result = read_cluster(reader, gpu, links->fabric_uuid);
    }
    if (result == 0) {
        result = read_kind(reader, gpu, links);
    }
    if (result == 0) {
        result = read_text(reader, gpu, LAMPREY_ATTRIBUTE_UUID, out->uuid, sizeof(out->uuid));
    }
    if (result == 0) {
        result = read_text(reader, gpu, LAMPREY_ATTRIBUTE_MODEL, out->model, sizeof(out->model));
    }
    if (result == 0) {
        result = read_text(reader, gpu, LAMPREY_ATTRIBUTE_SM, out->sm, sizeof(out->sm));
    }
    return result;
}

static size_t index_of(const struct reader *reader, hwloc_obj_t object)
{
    size_t n = reader->machine->ngpus;
    for (size_t i = 0; i < n; i++) {
        if (reader->gpus[i].object == object) {
            return i;
        }
    }
    return n;
}

static int take_matrix(struct reader *reader, const struct hwloc_distances_s *matrix)
{
    size_t n = reader->machine->ngpus;
    size_t *at = reader->row;
    if ((matrix->kind & HWLOC_DISTANCES_KIND_MEANS_BANDWIDTH) == 0 || matrix->nbobjs > n) {
        return lamprey_reason_give(reader->reason, EIO, "%s is no bandwidth matrix of %zu GPUs",
                                   LAMPREY_ATTRIBUTE_MATRIX, n);
    }
    for (unsigned i = 0; i < matrix->nbobjs; i++) {
        at[i] = index_of(reader, matrix->objs[i]);
        if (at[i] == n) {
            return lamprey_reason_give(reader->reason, EIO, "row %u of %s is no GPU", i,
                                       LAMPREY_ATTRIBUTE_MATRIX);
        }
        reader->covered[at[i]] = true;
    }
    for (unsigned i = 0; i < matrix->nbobjs; i++) {
        for (unsigned j = 0; j < matrix->nbobjs; j++) {
            uint64_t value = matrix->values[i * matrix->nbobjs + j];
            uint64_t back = matrix->values[j * matrix->nbobjs + i];
            if (value != back || value > UINT32_MAX || (i == j && value != 0)) {
                return lamprey_reason_give(reader->reason, EIO,
                                           "%s makes no sense at row %u, column %u: %" PRIu64
                                           ", and back %" PRIu64,
                                           LAMPREY_ATTRIBUTE_MATRIX, i, j, value, back);
            }
            reader->mbps[at[i] * n + at[j]] = (uint32_t)value;
        }
    }
    return 0;
}

static int read_matrix(struct reader *reader)
{
    struct hwloc_distances_s *matrices[2] = {NULL, NULL};
    unsigned n = 2;
    if (hwloc_distances_get_by_name(reader->tree, LAMPREY_ATTRIBUTE_MATRIX, &n, matrices, 0) != 0) {
        return lamprey_reason_give(reader->reason, EIO, "hwloc has no distances: %s",
                                   strerror(errno));
    }
    int result = 0;
    if (n > 1) {
        result = lamprey_reason_give(reader->reason, EIO, "%u matrices are named %s", n,
                                     LAMPREY_ATTRIBUTE_MATRIX);
    } else if (n == 1) {
        reader->has_matrix = true;
        result = take_matrix(reader, matrices[0]);
    }
    for (unsigned i = 0; i < n && i < 2; i++) {
        hwloc_distances_release(reader->tree, matrices[i]);
    }
    return result;
}

/* hwloc drops a matrix that it can't make sense of without a word: its absence is the only trace.
 */
static int check_matrix(const struct reader *reader)
{
    size_t linked = 0;
    for (size_t i = 0; i < reader->machine->ngpus; i++) {
        linked += reader->machine->gpus[i].links.links_active > 0;
    }
    if (linked < 2) {
        return 0;
    }
    if (!reader->has_matrix) {
        return lamprey_reason_give(reader->reason, EIO,
                                   "%zu GPUs have NVLinks, but %s is missing or damaged", linked,
                                   LAMPREY_ATTRIBUTE_MATRIX);
    }
    for (size_t i = 0; i < reader->machine->ngpus; i++) {
        if (reader->machine->gpus[i].links.links_active > 0 && !reader->covered[i]) {
            char text[LAMPREY_PCI_TEXT];
            return lamprey_reason_give(reader->reason, EIO, "%s lacks GPU %s",
                                       LAMPREY_ATTRIBUTE_MATRIX,
                                       lamprey_pci_text(reader->gpus[i].pci_id, text));
        }
    }
    return 0;
}

/* More than fit are left out; the pairs that this breaks are then refused, not misjudged. */
static void add_peer(struct lamprey_gpu_links *links, uint64_t pci_id)
{
    for (uint32_t i = 0; i < links->peer_count; i++) {
        if (lamprey_pci_same_device(links->peers[i], pci_id)) {
            return;
        }
    }
    if (links->peer_count < LAMPREY_TOPOLOGY_MAX_PEERS) {
        links->peers[links->peer_count++] = pci_id;
    }
}

/* The peers that the matrix gives, and those beyond it: a container may see one GPU of a pair. */
static int fill_peers(const struct reader *reader, size_t gpu)
{
    size_t n = reader->machine->ngpus;
    struct lamprey_gpu_links *links = &reader->machine->gpus[gpu].links;
    for (size_t other = 0; other < n; other++) {
        if (reader->mbps[gpu * n + other] != 0) {
            add_peer(links, reader->gpus[other].pci_id);
        }
    }
    const char *list = attribute(reader, gpu, LAMPREY_ATTRIBUTE_PEERS);
    for (const char *next = list; next != NULL && *next != '\0';) {
        uint64_t pci_id = 0;
        if (!lamprey_pci_parse(next, &pci_id, &next) || (*next != ' ' && *next != '\0')) {
            return malformed(reader, gpu, LAMPREY_ATTRIBUTE_PEERS, list);
        }
        next += *next == ' ';
        bool in_matrix = false;
        for (size_t other = 0; other < n; other++) {
            in_matrix = in_matrix || (reader->covered[gpu] && reader->covered[other] &&
                                      lamprey_pci_same_device(reader->gpus[other].pci_id, pci_id));
        }
        if (!in_matrix) {
            add_peer(links, pci_id);
        }
    }
    return 0;
}

static bool remote_is(const struct reader *reader, size_t gpu, const char *word)
{
    const char *remote = attribute(reader, gpu, LAMPREY_ATTRIBUTE_REMOTE);
    return remote != NULL && strcmp(remote, word) == 0;
}

/* SWITCH promises every other GPU on the switches. Where one is ruled out, only a list is true.
 * One in MIG mode needs no list: it is refused by its own record. */
static void keep_promise(const struct reader *reader, size_t gpu)
{
    size_t n = reader->machine->ngpus;
    struct lamprey_machine_gpu *gpus = reader->machine->gpus;
    for (size_t other = 0; other < n; other++) {
        if (other != gpu && remote_is(reader, other, "switch") && gpus[other].links.mig == 0 &&
            reader->mbps[gpu * n + other] == 0) {
            gpus[gpu].links.kind = LAMPREY_NVLINK_DIRECT;
            return;
        }
    }
}

static void fill_pairs(const struct reader *reader)
{
    size_t n = reader->machine->ngpus;
    const struct lamprey_machine_gpu *gpus = reader->machine->gpus;
    for (size_t i = 0; i < n * n; i++) {
        struct lamprey_machine_pair *pair = &reader->machine->pairs[i];
        size_t a = i / n;
        size_t b = i % n;
        pair->mbps = reader->mbps[i];
        if (a == b) {
            pair->kind = LAMPREY_PAIR_SELF;
        } else if (pair->mbps != 0) {
            bool direct = remote_is(reader, a, "gpu") || remote_is(reader, b, "gpu");
            pair->kind = direct ? LAMPREY_PAIR_DIRECT : LAMPREY_PAIR_SWITCH;
        } else if (gpus[a].links.kind == LAMPREY_NVLINK_UNKNOWN ||
                   gpus[b].links.kind == LAMPREY_NVLINK_UNKNOWN) {
            pair->kind = LAMPREY_PAIR_UNKNOWN;
        } else {
            pair->kind = LAMPREY_PAIR_PCIE;
        }
    }
}

static int read_root(const struct reader *reader)
{
    struct lamprey_machine *machine = reader->machine;
    hwloc_obj_t root = hwloc_get_root_obj(reader->tree);
    const char *probe = hwloc_obj_get_info_by_name(root, LAMPREY_ATTRIBUTE_PROBE);
    const char *version = hwloc_obj_get_info_by_name(root, LAMPREY_ATTRIBUTE_VERSION);
    if (probe == NULL) {
        return 0;
    }
    snprintf(machine->probe, sizeof(machine->probe), "%s", probe);
    if (version == NULL || strcmp(version, LAMPREY_ATTRIBUTE_VERSION_TEXT) != 0) {
        return lamprey_reason_give(
            reader->reason, EIO, "the annotations have version %s, this library knows %s",
            version != NULL ? version : "none", LAMPREY_ATTRIBUTE_VERSION_TEXT);
    }
    return 0;
}

static int read_all(struct reader *reader)
{
    struct lamprey_machine *machine = reader->machine;
    int result = read_root(reader);
    for (size_t i = 0; result == 0 && i < machine->ngpus; i++) {
        result = read_gpu(reader, i);
    }
    if (result == 0) {
        result = read_matrix(reader);
    }
    if (result == 0) {
        result = check_matrix(reader);
    }
    for (size_t i = 0; result == 0 && i < machine->ngpus; i++) {
        if (machine->gpus[i].links.kind == LAMPREY_NVLINK_SWITCH) {
            keep_promise(reader, i);
        }
        if (machine->gpus[i].links.kind == LAMPREY_NVLINK_DIRECT) {
            result = fill_peers(reader, i);
        }
    }
    if (result == 0) {
        fill_pairs(reader);
    }
    return result;
}

int lamprey_machine_create(hwloc_topology_t tree, struct lamprey_machine **machine,
                           const struct lamprey_reason *reason)
{
    struct reader reader = {.tree = tree, .reason = reason};
    size_t n = 0;
    int result = lamprey_tree_gpus(tree, &reader.gpus, &n, reason);
    if (result != 0) {
        return result;
    }
    reader.machine = calloc(1, sizeof(*reader.machine));
    reader.mbps = calloc(n * n + 1, sizeof(*reader.mbps));
    reader.covered = calloc(n + 1, sizeof(*reader.covered));
    reader.row = calloc(n + 1, sizeof(*reader.row));
    if (reader.machine != NULL) {
        reader.machine->ngpus = n;
        reader.machine->gpus = calloc(n + 1, sizeof(*reader.machine->gpus));
        reader.machine->pairs = calloc(n * n + 1, sizeof(*reader.machine->pairs));
    }
    if (reader.machine == NULL || reader.mbps == NULL || reader.covered == NULL ||
        reader.row == NULL || reader.machine->gpus == NULL || reader.machine->pairs == NULL) {
        result = lamprey_reason_give(reason, ENOMEM, "out of memory for %zu GPUs", n);
    } else {
        result = read_all(&reader);
    }
    if (result == 0) {
        *machine = reader.machine;
        reader.machine = NULL;
    }
    lamprey_machine_destroy(reader.machine);
    free(reader.gpus);
    free(reader.mbps);
    free(reader.covered);
    free(reader.row);
    return result;
}

void lamprey_machine_destroy(struct lamprey_machine *machine)
{
    if (machine == NULL) {
        return;
    }
    free(machine->gpus);
    free(machine->pairs);
    free(machine);
}

const struct lamprey_machine_gpu *lamprey_machine_find(const struct lamprey_machine *machine,
                                                       uint64_t pci_id)
{
    const struct lamprey_machine_gpu *found = NULL;
    for (size_t i = 0; i < machine->ngpus; i++) {
        const struct lamprey_machine_gpu *gpu = &machine->gpus[i];
        if (gpu->pci_id == pci_id) {
            return gpu;
        }
    }
    for (size_t i = 0; i < machine->ngpus; i++) {
        const struct lamprey_machine_gpu *gpu = &machine->gpus[i];
        if (lamprey_pci_same_device(gpu->pci_id, pci_id)) {
            if (found != NULL) {
                return NULL;
            }
            found = gpu;
        }
    }
    return found;
}
