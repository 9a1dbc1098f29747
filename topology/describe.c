/* SPDX-License-Identifier: Apache-2.0 */
/* The library's one symbol, and what it keeps between calls: the machine's tables, not hwloc's. */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#include "topology/load.h"
#include "topology/pci.h"
#include "topology/topology.h"

/* While the fabric registers its GPUs an answer is out of date at the next call. */
enum { FABRIC_IN_PROGRESS = 2 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct lamprey_machine *live;
static char live_note[256];
static struct lamprey_machine *file;
static struct stat file_stat;

__attribute__((visibility("default"))) int
lampreyTopologyDescribe(uint32_t version, const char *xml_path, uint64_t pci_id,
                        struct lamprey_gpu_links *links, size_t links_size, char *reason,
                        size_t reason_size);

_Static_assert(__builtin_types_compatible_p(__typeof__(&lampreyTopologyDescribe),
                                            lamprey_topology_describe),
               "what callers look up");

static bool is_settled(const struct lamprey_machine *machine)
{
    for (size_t i = 0; i < machine->ngpus; i++) {
        if (machine->gpus[i].links.fabric_state == FABRIC_IN_PROGRESS) {
            return false;
        }
    }
    return true;
}

static int get_live(const struct lamprey_reason *reason, const struct lamprey_machine **machine)
{
    if (live == NULL || !is_settled(live)) {
        struct lamprey_machine *fresh = NULL;
        struct lamprey_reason note = {.text = live_note, .size = sizeof(live_note)};
        int result = lamprey_load_live(LAMPREY_LOAD_NVML, &fresh, &note, reason);
        if (result != 0) {
            return result;
        }
        lamprey_machine_destroy(live);
        live = fresh;
    }
    *machine = live;
    return 0;
}

static bool is_same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static int get_file(const char *path, const struct lamprey_reason *reason,
                    const struct lamprey_machine **machine)
{
    struct stat now;
    if (stat(path, &now) != 0) {
        return lamprey_reason_give(reason, EIO, "cannot read %s: %s", path, strerror(errno));
    }
    if (file == NULL || !is_same_file(&now, &file_stat)) {
        struct lamprey_machine *fresh = NULL;
        int result = lamprey_load_file(path, &fresh, reason);
        if (result != 0) {
            return result;
        }
        lamprey_machine_destroy(file);
        file = fresh;
        file_stat = now;
    }
    *machine = file;
    return 0;
}

static int describe(const char *xml_path, uint64_t pci_id, struct lamprey_gpu_links *links,
                    const struct lamprey_reason *reason)
{
    const struct lamprey_machine *machine = NULL;
    int result =
        xml_path != NULL ? get_file(xml_path, reason, &machine) : get_live(reason, &machine);
    if (result != 0) {
        return result;
    }
    char text[LAMPREY_PCI_TEXT];
    const char *note = xml_path == NULL ? live_note : "";
    const struct lamprey_machine_gpu *gpu = lamprey_machine_find(machine, pci_id);
    if (gpu == NULL) {
        return lamprey_reason_give(reason, ENODEV, "no GPU %s among the %zu of %s%s%s",
                                   lamprey_pci_text(pci_id, text), machine->ngpus,
                                   xml_path != NULL ? xml_path : "this machine",
                                   note[0] != '\0' ? "; " : "", note);
    }
    *links = gpu->links;
    if (links->kind != LAMPREY_NVLINK_UNKNOWN) {
        return 0;
    }
    if (note[0] == '\0') {
        note = machine->probe[0] != '\0' ? "the driver did not tell"
                                         : "the topology carries no annotation";
    }
    return lamprey_reason_give(reason, 0, "the NVLinks of GPU %s are unknown: %s",
                               lamprey_pci_text(pci_id, text), note);
}

int lampreyTopologyDescribe(uint32_t version, const char *xml_path, uint64_t pci_id,
                            struct lamprey_gpu_links *links, size_t links_size, char *reason,
                            size_t reason_size)
{
    struct lamprey_reason why = {.text = reason, .size = reason != NULL ? reason_size : 0};
    lamprey_reason_give(&why, 0, "%s", "");
    if (version != LAMPREY_TOPOLOGY_VERSION) {
        return lamprey_reason_give(&why, EINVAL, "asked for version %u, this library has %d",
                                   version, LAMPREY_TOPOLOGY_VERSION);
    }
    if (links == NULL || links_size != sizeof(*links)) {
        return lamprey_reason_give(&why, EINVAL, "asked for %zu bytes, this library has %zu",
                                   links != NULL ? links_size : 0, sizeof(*links));
    }
    pthread_mutex_lock(&lock);
    int result = describe(xml_path, pci_id, links, &why);
    pthread_mutex_unlock(&lock);
    return result;
}

/* For whoever closes the library; at exit a thread may still be inside, then all stays. */
__attribute__((destructor)) static void release(void)
{
    if (pthread_mutex_trylock(&lock) != 0) {
        return;
    }
    lamprey_machine_destroy(live);
    lamprey_machine_destroy(file);
    live = NULL;
    file = NULL;
    pthread_mutex_unlock(&lock);
}
