/* SPDX-License-Identifier: Apache-2.0 */
#include "topology/annotate.h"

#include <errno.h>
#include <hwloc/distances.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "topology/attributes.h"
#include "topology/probe.h"
#include "topology/tree.h"

enum {
    BASE_CLASS_DISPLAY = 0x03,
};

/* A probed GPU and its place in the topology. */
struct subject {
    struct lamprey_probe_gpu *gpu;
    hwloc_obj_t object;
    unsigned to_gpus;
    unsigned to_switches;
};

bool lamprey_annotate_wanted(hwloc_topology_t tree)
{
    return hwloc_topology_is_thissystem(tree) &&
           hwloc_obj_get_info_by_name(hwloc_get_root_obj(tree), LAMPREY_ATTRIBUTE_PROBE) == NULL;
}

__attribute__((format(printf, 3, 4))) static int add(hwloc_obj_t object, const char *name,
                                                     const char *format, ...)
{
    char text[LAMPREY_PROBE_MAX_LINKS * LAMPREY_PCI_TEXT];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    return hwloc_obj_add_info(object, name, text);
}

static int add_known(hwloc_obj_t object, const char *name, int64_t value)
{
    return value != LAMPREY_PROBE_UNKNOWN ? add(object, name, "%" PRId64, value) : 0;
}

static hwloc_obj_t find_gpu(const struct lamprey_tree_gpu *gpus, size_t ngpus, uint64_t pci_id)
{
    for (size_t i = 0; i < ngpus; i++) {
        if (gpus[i].pci_id == pci_id) {
            return gpus[i].object;
        }
    }
    for (size_t i = 0; i < ngpus; i++) {
        if (lamprey_pci_same_device(gpus[i].pci_id, pci_id)) {
            return gpus[i].object;
        }
    }
    return NULL;
}

/* hwloc may be blind where NVML is not; then a Misc object stands for the GPU. */
static hwloc_obj_t stand_in(hwloc_topology_t tree, uint64_t pci_id)
{
    char text[LAMPREY_PCI_TEXT];
    hwloc_obj_t object = hwloc_topology_insert_misc_object(tree, hwloc_get_root_obj(tree),
                                                           LAMPREY_ATTRIBUTE_MISC_GPU);
    if (object == NULL ||
        add(object, LAMPREY_ATTRIBUTE_PCI_ID, "%s", lamprey_pci_text(pci_id, text)) != 0) {
        return NULL;
    }
    return object;
}

/* What older drivers don't classify is looked up in the tree; what stays unknown is taken for a
 * switch, as NCCL does: switches are what hypervisors hide. */
static int remote_type(hwloc_topology_t tree, const struct subject *subjects, size_t n,
                       const struct lamprey_probe_link *link)
{
    if (link->remote_type == LAMPREY_NVML_REMOTE_GPU ||
        link->remote_type == LAMPREY_NVML_REMOTE_SWITCH) {
        return link->remote_type;
    }
    if (link->remote == LAMPREY_PCI_UNKNOWN) {
        return LAMPREY_NVML_REMOTE_SWITCH;
    }
    for (size_t i = 0; i < n; i++) {
        if (lamprey_pci_same_device(subjects[i].gpu->pci_id, link->remote)) {
            return LAMPREY_NVML_REMOTE_GPU;
        }
    }
    hwloc_obj_t object = hwloc_get_pcidev_by_busid(
        tree, (unsigned)(link->remote >> 16), (unsigned)(link->remote >> 8 & 0xff),
        (unsigned)(link->remote >> 3 & 0x1f), (unsigned)(link->remote & 7));
    if (object != NULL && object->attr->pcidev.class_id >> 8 == BASE_CLASS_DISPLAY) {
        return LAMPREY_NVML_REMOTE_GPU;
    }
    return LAMPREY_NVML_REMOTE_SWITCH;
}

static void classify_links(hwloc_topology_t tree, const struct subject *subjects, size_t n,
                           struct subject *subject)
{
    for (int64_t i = 0; i < subject->gpu->links_active; i++) {
        struct lamprey_probe_link *link = &subject->gpu->links[i];
        link->remote_type = remote_type(tree, subjects, n, link);
        if (link->remote_type == LAMPREY_NVML_REMOTE_GPU) {
            subject->to_gpus++;
        } else {
            subject->to_switches++;
        }
    }
}

static unsigned links_to(const struct subject *subject, uint64_t pci_id)
{
    unsigned n = 0;
    for (int64_t i = 0; i < subject->gpu->links_active; i++) {
        const struct lamprey_probe_link *link = &subject->gpu->links[i];
        n += link->remote_type == LAMPREY_NVML_REMOTE_GPU &&
             lamprey_pci_same_device(link->remote, pci_id);
    }
    return n;
}

static int write_peers(const struct subject *subject)
{
    const struct lamprey_probe_gpu *gpu = subject->gpu;
    char list[LAMPREY_PROBE_MAX_LINKS * LAMPREY_PCI_TEXT] = "";
    size_t length = 0;
    for (int64_t i = 0; i < gpu->links_active; i++) {
        const struct lamprey_probe_link *link = &gpu->links[i];
        bool listed =
            link->remote_type != LAMPREY_NVML_REMOTE_GPU || link->remote == LAMPREY_PCI_UNKNOWN;
        for (int64_t j = 0; j < i; j++) {
            listed = listed || (gpu->links[j].remote_type == LAMPREY_NVML_REMOTE_GPU &&
                                gpu->links[j].remote == link->remote);
        }
        if (!listed) {
            char text[LAMPREY_PCI_TEXT];
            length += (size_t)snprintf(list + length, sizeof(list) - length, "%s%s",
                                       length > 0 ? " " : "", lamprey_pci_text(link->remote, text));
        }
    }
    return length > 0 ? add(subject->object, LAMPREY_ATTRIBUTE_PEERS, "%s", list) : 0;
}

static int write_links(const struct subject *subject)
{
    const struct lamprey_probe_gpu *gpu = subject->gpu;
    hwloc_obj_t object = subject->object;
    if (gpu->links_active == LAMPREY_PROBE_UNKNOWN) {
        return 0;
    }
    const char *remote = subject->to_gpus == 0 && subject->to_switches == 0 ? "none"
                         : subject->to_switches == 0                        ? "gpu"
                         : subject->to_gpus == 0                            ? "switch"
                                                                            : "mixed";
    int failed = add_known(object, LAMPREY_ATTRIBUTE_LINK_COUNT, gpu->link_count) |
                 add_known(object, LAMPREY_ATTRIBUTE_LINKS_ACTIVE, gpu->links_active) |
                 add(object, LAMPREY_ATTRIBUTE_REMOTE, "%s", remote);
    if (gpu->links_active > 0) {
        bool hidden = true;
        for (int64_t i = 0; i < gpu->links_active; i++) {
            hidden = hidden && gpu->links[i].remote == LAMPREY_PCI_UNKNOWN;
        }
        failed |= add_known(object, LAMPREY_ATTRIBUTE_LINK_MBPS, gpu->link_mbps) |
                  add_known(object, LAMPREY_ATTRIBUTE_HIDDEN, hidden) | write_peers(subject);
    }
    return failed;
}

static int write_fabric(const struct subject *subject)
{
    const struct lamprey_probe_gpu *gpu = subject->gpu;
    hwloc_obj_t object = subject->object;
    if (gpu->fabric_state == LAMPREY_PROBE_UNKNOWN) {
        return 0;
    }
    char uuid[2 * sizeof(gpu->fabric_uuid) + 1];
    for (size_t i = 0; i < sizeof(gpu->fabric_uuid); i++) {
        snprintf(uuid + 2 * i, 3, "%02x", gpu->fabric_uuid[i]);
    }
    int failed = add_known(object, LAMPREY_ATTRIBUTE_FABRIC_STATE, gpu->fabric_state) |
                 add_known(object, LAMPREY_ATTRIBUTE_FABRIC_STATUS, gpu->fabric_status) |
                 add(object, LAMPREY_ATTRIBUTE_FABRIC_UUID, "%s", uuid) |
                 add_known(object, LAMPREY_ATTRIBUTE_FABRIC_CLIQUE, gpu->fabric_clique);
    if (gpu->fabric_health != LAMPREY_PROBE_UNKNOWN) {
        failed |= add(object, LAMPREY_ATTRIBUTE_FABRIC_HEALTH, "0x%" PRIx64,
                      (uint64_t)gpu->fabric_health);
    }
    if (gpu->chassis != LAMPREY_PROBE_UNKNOWN) {
        failed |= add(object, LAMPREY_ATTRIBUTE_CHASSIS, "0x%" PRIx64, (uint64_t)gpu->chassis);
    }
    return failed;
}

static int write_gpu(const struct subject *subject)
{
    const struct lamprey_probe_gpu *gpu = subject->gpu;
    hwloc_obj_t object = subject->object;
    int failed = 0;
    if (gpu->uuid[0] != '\0') {
        failed |= add(object, LAMPREY_ATTRIBUTE_UUID, "%s", gpu->uuid);
    }
    if (gpu->model[0] != '\0') {
        failed |= add(object, LAMPREY_ATTRIBUTE_MODEL, "%s", gpu->model);
    }
    if (gpu->sm_major != LAMPREY_PROBE_UNKNOWN) {
        failed |=
            add(object, LAMPREY_ATTRIBUTE_SM, "%" PRId64 ".%" PRId64, gpu->sm_major, gpu->sm_minor);
    }
    failed |= add_known(object, LAMPREY_ATTRIBUTE_MIG, gpu->mig);
    return failed | write_links(subject) | write_fabric(subject);
}

static const struct subject *subject_of(const struct subject *subjects, size_t n,
                                        hwloc_obj_t object)
{
    for (size_t i = 0; i < n; i++) {
        if (subjects[i].object == object) {
            return &subjects[i];
        }
    }
    return NULL;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* MB/s between two GPUs of the topology, of which NVML may know one only. */
static uint64_t pair_mbps(const struct subject *a, uint64_t a_id, const struct subject *b,
                          uint64_t b_id)
{
    uint64_t a_speed = a != NULL && a->gpu->links_active > 0 ? (uint64_t)a->gpu->link_mbps : 0;
    uint64_t b_speed = b != NULL && b->gpu->links_active > 0 ? (uint64_t)b->gpu->link_mbps : 0;
    uint64_t a_direct = a_speed != 0 ? a_speed * links_to(a, b_id) : 0;
    uint64_t b_direct = b_speed != 0 ? b_speed * links_to(b, a_id) : 0;
    if (a == NULL || b == NULL) {
        return a == NULL ? b_direct : a_direct;
    }
    return min_u64(a_direct, b_direct) +
           min_u64(a_speed * a->to_switches, b_speed * b->to_switches);
}

static int write_matrix(hwloc_topology_t tree, const struct lamprey_probe *probe,
                        const struct subject *subjects, const struct lamprey_tree_gpu *gpus,
                        size_t n, const struct lamprey_reason *reason)
{
    hwloc_obj_t *objects = calloc(n, sizeof(*objects));
    hwloc_uint64_t *values = calloc(n * n, sizeof(*values));
    int result = ENOMEM;
    if (objects == NULL || values == NULL) {
        lamprey_reason_give(reason, ENOMEM, "out of memory for %zu GPUs", n);
        goto out;
    }
    for (size_t i = 0; i < n; i++) {
        objects[i] = gpus[i].object;
        const struct subject *a = subject_of(subjects, probe->ngpus, gpus[i].object);
        for (size_t j = 0; j < n; j++) {
            const struct subject *b = subject_of(subjects, probe->ngpus, gpus[j].object);
            bool refused = a != NULL && b != NULL &&
                           (probe->p2p_refused[(a - subjects) * probe->ngpus + (b - subjects)] ||
                            probe->p2p_refused[(b - subjects) * probe->ngpus + (a - subjects)]);
            values[i * n + j] =
                i == j || refused ? 0 : pair_mbps(a, gpus[i].pci_id, b, gpus[j].pci_id);
        }
    }
    unsigned long kind = HWLOC_DISTANCES_KIND_FROM_USER | HWLOC_DISTANCES_KIND_MEANS_BANDWIDTH;
    hwloc_distances_add_handle_t handle =
        hwloc_distances_add_create(tree, LAMPREY_ATTRIBUTE_MATRIX, kind, 0);
    /* Either call frees the handle when it fails. */
    if (handle == NULL ||
        hwloc_distances_add_values(tree, handle, (unsigned)n, objects, values, 0) != 0 ||
        hwloc_distances_add_commit(tree, handle, 0) != 0) {
        result = lamprey_reason_give(reason, EIO, "hwloc refused the matrix %s: %s",
                                     LAMPREY_ATTRIBUTE_MATRIX, strerror(errno));
        goto out;
    }
    result = 0;
out:
    free(objects);
    free(values);
    return result;
}

static int write_all(hwloc_topology_t tree, const struct lamprey_probe *probe,
                     struct subject *subjects, const struct lamprey_reason *reason)
{
    struct lamprey_tree_gpu *gpus = NULL;
    size_t ngpus = 0;
    int result = lamprey_tree_gpus(tree, &gpus, &ngpus, reason);
    if (result != 0) {
        return result;
    }
    for (size_t i = 0; i < probe->ngpus; i++) {
        subjects[i].gpu = &probe->gpus[i];
        subjects[i].object = find_gpu(gpus, ngpus, probe->gpus[i].pci_id);
        if (subjects[i].object == NULL) {
            subjects[i].object = stand_in(tree, probe->gpus[i].pci_id);
        }
        if (subjects[i].object == NULL) {
            result = lamprey_reason_give(reason, EIO, "hwloc refused an object for a GPU: %s",
                                         strerror(errno));
            goto out;
        }
    }
    for (size_t i = 0; i < probe->ngpus; i++) {
        classify_links(tree, subjects, probe->ngpus, &subjects[i]);
        if (write_gpu(&subjects[i]) != 0) {
            result =
                lamprey_reason_give(reason, EIO, "hwloc refused an attribute: %s", strerror(errno));
            goto out;
        }
    }

    /* Again, now with the stand-ins. */
    free(gpus);
    gpus = NULL;
    result = lamprey_tree_gpus(tree, &gpus, &ngpus, reason);
    if (result == 0 && ngpus >= 2) {
        result = write_matrix(tree, probe, subjects, gpus, ngpus, reason);
    }
    hwloc_obj_t root = hwloc_get_root_obj(tree);
    if (result == 0 &&
        (add(root, LAMPREY_ATTRIBUTE_VERSION, "%s", LAMPREY_ATTRIBUTE_VERSION_TEXT) != 0 ||
         add(root, LAMPREY_ATTRIBUTE_PROBE, "nvml %s", probe->driver) != 0)) {
        result =
            lamprey_reason_give(reason, EIO, "hwloc refused an attribute: %s", strerror(errno));
    }
out:
    free(gpus);
    return result;
}

int lamprey_annotate(hwloc_topology_t tree, const struct lamprey_nvml *nvml,
                     const struct lamprey_reason *reason)
{
    struct lamprey_probe *probe = NULL;
    int result = lamprey_probe_create(nvml, &probe, reason);
    if (result != 0) {
        return result;
    }
    struct subject *subjects = calloc(probe->ngpus + 1, sizeof(*subjects));
    result = subjects != NULL
                 ? write_all(tree, probe, subjects, reason)
                 : lamprey_reason_give(reason, ENOMEM, "out of memory for %zu GPUs", probe->ngpus);
    free(subjects);
    lamprey_probe_destroy(probe);
    return result;
}
