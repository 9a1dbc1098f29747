/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "plugin/device.h"
#include "tools/doctor/checks.h"
#include "tools/doctor/gpu.h"
#include "tools/doctor/report.h"
#include "topology/domain.h"

struct machine {
    struct doctor_driver driver;
    struct doctor_gpu gpus[DOCTOR_MAX_GPUS];
    struct lamprey_domain_record records[DOCTOR_MAX_GPUS];
    size_t ngpus;
    bool in_cluster; /* of several hosts */
};

static void release_text(int version, char *text, size_t size)
{
    snprintf(text, size, "%d.%d", version / 1000, version % 1000 / 10);
}

static bool check_driver(struct machine *machine)
{
    char reason[256];
    char have[32];
    char need[32];
    if (!doctor_driver_load(&machine->driver, reason, sizeof(reason))) {
        bool empty = strstr(reason, "CUDA_ERROR_NO_DEVICE") != NULL;
        doctor_say(DOCTOR_WRONG, "driver",
                   empty
                       ? "show this process its GPUs (CUDA_VISIBLE_DEVICES, docker run --gpus all)"
                       : "install NVIDIA's driver; start a container with its GPUs (--gpus all)",
                   "%s: %s", empty ? "the driver shows no GPU" : "no CUDA driver", reason);
        return false;
    }
    release_text(machine->driver.version, have, sizeof(have));
    release_text(CUDA_VERSION, need, sizeof(need));
    if (machine->driver.version < CUDA_VERSION) {
        doctor_say(DOCTOR_WRONG, "driver",
                   "update the driver (570 for CUDA 12.8, 580 for 13.0), or build Lamprey with an "
                   "older toolkit",
                   "the driver knows CUDA %s, this Lamprey was built with %s", have, need);
    } else {
        doctor_say(DOCTOR_OK, "driver", NULL, "CUDA %s (Lamprey was built with %s)", have, need);
    }
    return true;
}

static bool check_gpus(struct machine *machine)
{
    char reason[256];
    if (!doctor_gpus_list(&machine->driver, machine->gpus, &machine->ngpus, reason,
                          sizeof(reason))) {
        doctor_say(DOCTOR_WRONG, "gpus",
                   "look at nvidia-smi, and at the kernel's log for Xid lines",
                   "the GPUs can't be asked: %s", reason);
        return false;
    }
    if (machine->ngpus < 2) {
        const char *visible = getenv("CUDA_VISIBLE_DEVICES");
        doctor_say(
            DOCTOR_WRONG, "gpus",
            "show this process two GPUs or more (CUDA_VISIBLE_DEVICES, the container's GPUs)",
            "%zu GPU%s visible (CUDA_VISIBLE_DEVICES %s%s)", machine->ngpus,
            machine->ngpus == 1 ? "" : "s", visible != NULL ? "is " : "is not set",
            visible != NULL ? visible : "");
        return machine->ngpus > 0;
    }
    doctor_say(DOCTOR_OK, "gpus", NULL, "%zu GPUs visible, the first %s (sm %s)", machine->ngpus,
               machine->gpus[0].name, machine->gpus[0].sm);
    for (size_t i = 1; i < machine->ngpus; i++) {
        if (strcmp(machine->gpus[i].sm, machine->gpus[0].sm) != 0) {
            doctor_say(DOCTOR_NOTE, "gpus", "keep communicators to GPUs of one kind",
                       "GPU %zu is %s (sm %s): not served together with GPU 0", i,
                       machine->gpus[i].name, machine->gpus[i].sm);
        }
    }
    return true;
}

/* By the plugin's own way: whether this Lamprey has kernels for the GPUs, and they load. */
static void check_kernels(const struct machine *machine)
{
    size_t good = 0;
    for (size_t i = 0; i < machine->ngpus; i++) {
        struct lamprey_device *device = NULL;
        char reason[160] = "the GPU can't be opened";
        if (lamprey_device_get((int)i, &device) == LAMPREY_OK &&
            lamprey_device_load_kernels(device, reason, sizeof(reason)) == LAMPREY_OK) {
            good++;
        } else {
            doctor_say(
                DOCTOR_WRONG, "kernels",
                "sm 8.0 is the oldest that is served; free the GPU's memory; update the driver",
                "GPU %zu, %s (sm %s): %s", i, machine->gpus[i].name, machine->gpus[i].sm, reason);
        }
    }
    if (good == machine->ngpus) {
        doctor_say(DOCTOR_OK, "kernels", NULL, "they load on all %zu GPUs", good);
    }
}

static void check_nvml(void)
{
    static const char remedy[] = "add the driver's libnvidia-ml.so.1 (container: "
                                 "NVIDIA_DRIVER_CAPABILITIES=compute,utility)";
    const char *stand_in = getenv("LAMPREY_TOPOLOGY");
    enum doctor_grade bad = stand_in != NULL && *stand_in != '\0' ? DOCTOR_NOTE : DOCTOR_WRONG;
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        doctor_say(bad, "nvml", remedy, "no NVML: %s", dlerror());
        return;
    }
    int (*init)(void) = (int (*)(void))(uintptr_t)dlsym(library, "nvmlInit_v2");
    int (*shutdown)(void) = (int (*)(void))(uintptr_t)dlsym(library, "nvmlShutdown");
    int (*version)(char *, unsigned) =
        (int (*)(char *, unsigned))(uintptr_t)dlsym(library, "nvmlSystemGetDriverVersion");
    char text[96] = "unknown";
    int result = init != NULL ? init() : -1;
    if (result != 0) {
        doctor_say(bad, "nvml", remedy, "NVML does not start (nvmlInit_v2 gives %d)", result);
        return;
    }
    if (version != NULL && version(text, sizeof(text)) != 0) {
        snprintf(text, sizeof(text), "unknown");
    }
    doctor_say(DOCTOR_OK, "nvml", NULL, "driver %s", text);
    if (shutdown != NULL) {
        shutdown();
    }
}

/* As the plugin opens it; NULL, and it is said why. */
static lamprey_topology_describe open_topology(const struct doctor_place *place)
{
    char path[PATH_MAX];
    doctor_join(path, sizeof(path), "%s/liblamprey-topology.so", place->lib);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = library != NULL ? dlsym(library, "lampreyTopologyDescribe") : NULL;
    if (symbol == NULL) {
        doctor_say(DOCTOR_WRONG, "hwloc",
                   "install again: lib/lamprey holds libhwloc.so.15 and what it needs",
                   "the topology library can't be loaded: %s", dlerror());
    }
    return (lamprey_topology_describe)(uintptr_t)symbol;
}

static bool describe_gpus(struct machine *machine, lamprey_topology_describe describe)
{
    static const uint8_t no_cluster[16];
    const char *xml = getenv("LAMPREY_TOPOLOGY");
    xml = xml != NULL && *xml != '\0' ? xml : NULL;
    for (size_t i = 0; i < machine->ngpus; i++) {
        struct lamprey_domain_record *record = &machine->records[i];
        char reason[256] = "";
        int result = describe(LAMPREY_TOPOLOGY_VERSION, xml, machine->gpus[i].pci_id,
                              &record->links, sizeof(record->links), reason, sizeof(reason));
        if (result != 0) {
            doctor_say(DOCTOR_WRONG, "hwloc",
                       xml != NULL
                           ? "mend or unset LAMPREY_TOPOLOGY"
                           : "look at lamprey topo; sysfs must be mounted, NVML must answer",
                       "GPU %zu has no place in the topology: %s", i, reason);
            return false;
        }
        if (reason[0] != '\0') {
            doctor_say(DOCTOR_NOTE, "hwloc", "look at lamprey topo, and at the check of nvml", "%s",
                       reason);
        }
        record->pci_id = machine->gpus[i].pci_id;
        record->host_id[0] = 1;
        machine->in_cluster =
            machine->in_cluster || memcmp(record->links.fabric_uuid, no_cluster, 16) != 0;
    }
    doctor_say(DOCTOR_OK, "hwloc", NULL, "the topology %s%s is read", xml != NULL ? "of " : "",
               xml != NULL ? xml : "of this machine");
    return true;
}

static void check_links(const struct machine *machine)
{
    static const char remedy[] = "look at lamprey topo, nvidia-smi nvlink -s, and MIG's state";
    char reason[320];
    size_t joined = 0;
    size_t pairs = 0;
    for (size_t a = 0; a < machine->ngpus; a++) {
        for (size_t b = a + 1; b < machine->ngpus; b++) {
            const struct lamprey_domain_record pair[] = {machine->records[a], machine->records[b]};
            joined += lamprey_domain_decide(pair, 2, NULL, 0) == LAMPREY_DOMAIN_HOST;
            pairs++;
        }
    }
    if (lamprey_domain_decide(machine->records, machine->ngpus, reason, sizeof(reason)) ==
        LAMPREY_DOMAIN_HOST) {
        doctor_say(DOCTOR_OK, "nvlink", NULL, "all %zu GPUs reach each other (GPU 0: %u links)",
                   machine->ngpus, machine->records[0].links.links_active);
    } else if (joined > 0) {
        doctor_say(DOCTOR_NOTE, "nvlink",
                   "keep communicators to GPUs that are joined: lamprey topo",
                   "%zu of %zu pairs of GPUs are joined; all together: %s", joined, pairs, reason);
    } else {
        doctor_say(DOCTOR_WRONG, "nvlink", remedy, "no two GPUs are joined: %s", reason);
    }
}

static void check_copies(const struct machine *machine)
{
    char reason[256];
    size_t good = 0;
    size_t bad = 0;
    for (size_t from = 0; from < machine->ngpus; from++) {
        for (size_t to = 0; to < machine->ngpus; to++) {
            const struct lamprey_domain_record pair[] = {machine->records[from],
                                                         machine->records[to]};
            if (from == to || lamprey_domain_decide(pair, 2, NULL, 0) != LAMPREY_DOMAIN_HOST) {
                continue;
            }
            if (doctor_copy(&machine->driver, machine->gpus[from].device, machine->gpus[to].device,
                            reason, sizeof(reason))) {
                good++;
            } else {
                doctor_say(DOCTOR_WRONG, "p2p",
                           "look for ACS and IOMMU settings, a failed fabric manager, Xid errors",
                           "GPU %zu can't write to GPU %zu: %s", from, to, reason);
                bad++;
            }
        }
    }
    if (bad == 0 && good > 0) {
        doctor_say(DOCTOR_OK, "p2p", NULL, "1 MiB arrives over each of %zu ways between GPUs",
                   good);
    }
}

static void check_shared_memory(void)
{
    static const char remedy[] = "mount it (mount -t tmpfs shm /dev/shm; docker run --shm-size=1g)";
    char folder[PATH_MAX];
    char path[PATH_MAX];
    struct statvfs room;
    doctor_path("/dev/shm", folder, sizeof(folder));
    doctor_join(path, sizeof(path), "%s/lamprey-doctor-%d", folder, (int)getpid());
    int file = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    if (file < 0 || statvfs(folder, &room) != 0) {
        doctor_say(DOCTOR_WRONG, "shm", remedy, "NCCL can't write to %s: %s", folder,
                   strerror(errno));
    } else {
        doctor_say(DOCTOR_OK, "shm", NULL, "%s has %" PRIu64 " MiB free", folder,
                   (uint64_t)room.f_bavail * room.f_frsize >> 20);
    }
    if (file >= 0) {
        close(file);
        unlink(path);
    }
}

void doctor_check_machine(const struct doctor_place *place)
{
    struct machine machine = {0};
    bool has_gpus = check_driver(&machine) && check_gpus(&machine);
    if (has_gpus) {
        check_kernels(&machine);
    }
    check_nvml();
    lamprey_topology_describe describe = open_topology(place);
    if (has_gpus && describe != NULL && describe_gpus(&machine, describe) && machine.ngpus > 1) {
        check_links(&machine);
        check_copies(&machine);
        if (machine.in_cluster) {
            doctor_check_imex();
        }
    }
    check_shared_memory();
}
