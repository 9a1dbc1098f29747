/* SPDX-License-Identifier: Apache-2.0 */
#include "topology/probe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum link_state {
    LINK_INACTIVE,
    LINK_ACTIVE,
    LINK_UNKNOWN,
    LINK_PAST_END,
};

/* Up to and with Blackwell; what to try where the GPU doesn't tell its count. */
enum { USUAL_LINKS = 18 };

static int field_value(const struct lamprey_nvml *nvml, lamprey_nvml_device device, unsigned id,
                       unsigned scope, int64_t *value)
{
    struct lamprey_nvml_field field = {.id = id, .scope = scope};
    int code = nvml->field_values != NULL ? nvml->field_values(device, 1, &field)
                                          : LAMPREY_NVML_NOT_SUPPORTED;
    if (code == LAMPREY_NVML_SUCCESS) {
        code = field.result;
    }
    if (code != LAMPREY_NVML_SUCCESS) {
        return code;
    }
    switch ((enum lamprey_nvml_value_type)field.type) {
    case LAMPREY_NVML_TYPE_DOUBLE:
        *value = (int64_t)field.value.floating;
        return code;
    case LAMPREY_NVML_TYPE_UINT:
        *value = field.value.uint_value;
        return code;
    case LAMPREY_NVML_TYPE_ULONG:
        *value = (int64_t)field.value.ulong_value;
        return code;
    case LAMPREY_NVML_TYPE_ULONGLONG:
        *value = (int64_t)field.value.ulonglong_value;
        return code;
    case LAMPREY_NVML_TYPE_LONGLONG:
        *value = field.value.longlong_value;
        return code;
    case LAMPREY_NVML_TYPE_INT:
        *value = field.value.int_value;
        return code;
    case LAMPREY_NVML_TYPE_USHORT:
        *value = field.value.ushort_value;
        return code;
    }
    return LAMPREY_NVML_NOT_SUPPORTED;
}

static enum link_state probe_link_state(const struct lamprey_nvml *nvml, lamprey_nvml_device device,
                                        int64_t sm_major, unsigned link)
{
    /* Asking for the capability also wakes links that sleep. */
    unsigned capable = 0;
    if (nvml->link_capability != NULL &&
        nvml->link_capability(device, link, LAMPREY_NVML_LINK_CAP_P2P, &capable) ==
            LAMPREY_NVML_SUCCESS &&
        capable == 0) {
        return LINK_INACTIVE;
    }

    int64_t state = 0;
    if (sm_major >= 9 && field_value(nvml, device, LAMPREY_NVML_FIELD_LINK_STATE, link, &state) ==
                             LAMPREY_NVML_SUCCESS) {
        return state == 1 ? LINK_ACTIVE : LINK_INACTIVE;
    }

    int active = 0;
    if (nvml->link_state == NULL) {
        return LINK_UNKNOWN;
    }
    switch (nvml->link_state(device, link, &active)) {
    case LAMPREY_NVML_SUCCESS:
        return active != 0 ? LINK_ACTIVE : LINK_INACTIVE;
    case LAMPREY_NVML_NOT_SUPPORTED:
        return LINK_INACTIVE;
    case LAMPREY_NVML_INVALID_ARGUMENT:
        return LINK_PAST_END;
    default:
        return LINK_UNKNOWN;
    }
}

static void probe_remote(const struct lamprey_nvml *nvml, lamprey_nvml_device device, unsigned link,
                         struct lamprey_probe_link *end)
{
    struct lamprey_nvml_pci pci = {.domain = LAMPREY_NVML_PCI_HIDDEN};
    int type = LAMPREY_NVML_REMOTE_UNKNOWN;

    end->remote_type = LAMPREY_NVML_REMOTE_UNKNOWN;
    end->remote = LAMPREY_PCI_UNKNOWN;
    if (nvml->link_remote_type != NULL &&
        nvml->link_remote_type(device, link, &type) == LAMPREY_NVML_SUCCESS) {
        end->remote_type = type;
    }
    if (nvml->link_remote_pci != NULL &&
        nvml->link_remote_pci(device, link, &pci) == LAMPREY_NVML_SUCCESS &&
        pci.domain != LAMPREY_NVML_PCI_HIDDEN) {
        end->remote = lamprey_pci_id(pci.domain, pci.bus, pci.device, 0);
    }
}

/* MB/s of payload by architecture, for drivers that don't report the speed. An architecture that
 * can't be told gets the slowest, so that nothing is promised. */
static int64_t usual_link_mbps(int64_t sm_major, int64_t sm_minor)
{
    switch (sm_major) {
    case 6:
        return 20000;
    case 7:
    case 9:
        return 25000;
    case 8:
        return sm_minor == 0 ? 25000 : 14000;
    default:
        return sm_major >= 10 ? 50000 : 14000;
    }
}

static void probe_links(const struct lamprey_nvml *nvml, lamprey_nvml_device device,
                        struct lamprey_probe_gpu *gpu)
{
    int64_t count = USUAL_LINKS;
    bool counted = field_value(nvml, device, LAMPREY_NVML_FIELD_LINK_COUNT, 0, &count) ==
                       LAMPREY_NVML_SUCCESS &&
                   count >= 0;
    if (!counted) {
        count = USUAL_LINKS;
    }
    if (count > LAMPREY_PROBE_MAX_LINKS) {
        count = LAMPREY_PROBE_MAX_LINKS;
    }

    int64_t link = 0;
    int64_t active = 0;
    int64_t mbps = 0;
    bool known = counted && count == 0;
    for (; link < count; link++) {
        enum link_state state = probe_link_state(nvml, device, gpu->sm_major, (unsigned)link);
        if (state == LINK_PAST_END) {
            break;
        }
        if (state == LINK_UNKNOWN) {
            continue;
        }
        known = true;
        if (state == LINK_INACTIVE) {
            continue;
        }
        struct lamprey_probe_link *end = &gpu->links[active];
        probe_remote(nvml, device, (unsigned)link, end);
        if (end->remote_type == LAMPREY_NVML_REMOTE_CPU) {
            continue; /* leads to no GPU */
        }
        active++;
        int64_t speed = 0;
        if (field_value(nvml, device, LAMPREY_NVML_FIELD_LINK_SPEED, (unsigned)link, &speed) ==
                LAMPREY_NVML_SUCCESS &&
            speed > 0 && speed <= UINT32_MAX && (mbps == 0 || speed < mbps)) {
            mbps = speed;
        }
    }
    known = known || (link == 0 && count > 0);
    if (!known) {
        return;
    }
    gpu->link_count = link;
    gpu->links_active = active;
    if (active > 0) {
        gpu->link_mbps = mbps != 0 ? mbps : usual_link_mbps(gpu->sm_major, gpu->sm_minor);
    }
}

static void probe_fabric(const struct lamprey_nvml *nvml, lamprey_nvml_device device,
                         struct lamprey_probe_gpu *gpu)
{
    static const unsigned versions[] = {
        LAMPREY_NVML_FABRIC_VERSION_2,
        LAMPREY_NVML_FABRIC_VERSION_3,
    };
    for (size_t i = 0; nvml->fabric_info != NULL && i < sizeof(versions) / sizeof(*versions); i++) {
        struct lamprey_nvml_fabric fabric = {.version = versions[i]};
        if (nvml->fabric_info(device, &fabric) == LAMPREY_NVML_SUCCESS) {
            gpu->fabric_state = fabric.state;
            gpu->fabric_status = (unsigned)fabric.status;
            gpu->fabric_clique = fabric.clique;
            gpu->fabric_health = fabric.health;
            memcpy(gpu->fabric_uuid, fabric.cluster_uuid, sizeof(gpu->fabric_uuid));
            return;
        }
    }
    struct lamprey_nvml_fabric_v1 fabric = {.state = 0};
    if (nvml->fabric_info_v1 != NULL &&
        nvml->fabric_info_v1(device, &fabric) == LAMPREY_NVML_SUCCESS) {
        gpu->fabric_state = fabric.state;
        gpu->fabric_status = (unsigned)fabric.status;
        gpu->fabric_clique = fabric.clique;
        memcpy(gpu->fabric_uuid, fabric.cluster_uuid, sizeof(gpu->fabric_uuid));
    }
}

/* The serial number itself is nobody's business: 32 bits of it (FNV-1a) tell chassis apart. */
static void probe_chassis(const struct lamprey_nvml *nvml, lamprey_nvml_device device,
                          struct lamprey_probe_gpu *gpu)
{
    static const unsigned char none[16];
    struct lamprey_nvml_platform platform = {.version = LAMPREY_NVML_PLATFORM_VERSION_2};
    if (nvml->platform_info == NULL ||
        nvml->platform_info(device, &platform) != LAMPREY_NVML_SUCCESS ||
        memcmp(platform.chassis_serial, none, sizeof(none)) == 0) {
        return;
    }
    uint32_t hash = 0x811c9dc5u;
    for (size_t i = 0; i < sizeof(platform.chassis_serial); i++) {
        hash = (hash ^ platform.chassis_serial[i]) * 0x01000193u;
    }
    gpu->chassis = hash != 0 ? hash : 1;
}

static bool probe_gpu(const struct lamprey_nvml *nvml, lamprey_nvml_device device,
                      struct lamprey_probe_gpu *gpu)
{
    struct lamprey_nvml_pci pci = {.domain = LAMPREY_NVML_PCI_HIDDEN};
    if (nvml->pci_info(device, &pci) != LAMPREY_NVML_SUCCESS ||
        pci.domain == LAMPREY_NVML_PCI_HIDDEN) {
        return false;
    }
    *gpu = (struct lamprey_probe_gpu){
        .pci_id = lamprey_pci_id(pci.domain, pci.bus, pci.device, 0),
        .sm_major = LAMPREY_PROBE_UNKNOWN,
        .sm_minor = LAMPREY_PROBE_UNKNOWN,
        .mig = LAMPREY_PROBE_UNKNOWN,
        .link_count = LAMPREY_PROBE_UNKNOWN,
        .links_active = LAMPREY_PROBE_UNKNOWN,
        .link_mbps = LAMPREY_PROBE_UNKNOWN,
        .fabric_state = LAMPREY_PROBE_UNKNOWN,
        .fabric_status = LAMPREY_PROBE_UNKNOWN,
        .fabric_clique = LAMPREY_PROBE_UNKNOWN,
        .fabric_health = LAMPREY_PROBE_UNKNOWN,
        .chassis = LAMPREY_PROBE_UNKNOWN,
    };
    /* The text also has the function, which is not 0 for the virtual functions of a vGPU. */
    uint64_t full = 0;
    pci.bus_id[sizeof(pci.bus_id) - 1] = '\0';
    if (lamprey_pci_parse(pci.bus_id, &full, NULL) && lamprey_pci_same_device(full, gpu->pci_id)) {
        gpu->pci_id = full;
    }

    if (nvml->uuid == NULL ||
        nvml->uuid(device, gpu->uuid, sizeof(gpu->uuid)) != LAMPREY_NVML_SUCCESS) {
        gpu->uuid[0] = '\0';
    }
    if (nvml->name == NULL ||
        nvml->name(device, gpu->model, sizeof(gpu->model)) != LAMPREY_NVML_SUCCESS) {
        gpu->model[0] = '\0';
    }
    int major = 0;
    int minor = 0;
    if (nvml->compute_capability != NULL &&
        nvml->compute_capability(device, &major, &minor) == LAMPREY_NVML_SUCCESS) {
        gpu->sm_major = major;
        gpu->sm_minor = minor;
    }
    unsigned current = 0;
    unsigned pending = 0;
    if (nvml->mig_mode != NULL) {
        int code = nvml->mig_mode(device, &current, &pending);
        if (code == LAMPREY_NVML_SUCCESS || code == LAMPREY_NVML_NOT_SUPPORTED) {
            gpu->mig = code == LAMPREY_NVML_SUCCESS && current != 0;
        }
    }
    probe_links(nvml, device, gpu);
    probe_fabric(nvml, device, gpu);
    probe_chassis(nvml, device, gpu);
    return true;
}

static bool p2p_is_refused(const struct lamprey_nvml *nvml, lamprey_nvml_device from,
                           lamprey_nvml_device to)
{
    static const int indexes[] = {
        LAMPREY_NVML_P2P_READ,
        LAMPREY_NVML_P2P_WRITE,
        LAMPREY_NVML_P2P_NVLINK,
    };
    for (size_t i = 0; nvml->p2p_status != NULL && i < sizeof(indexes) / sizeof(*indexes); i++) {
        int status = 0;
        if (nvml->p2p_status(from, to, indexes[i], &status) == LAMPREY_NVML_SUCCESS &&
            status != 0) {
            return true;
        }
    }
    return false;
}

int lamprey_probe_create(const struct lamprey_nvml *nvml, struct lamprey_probe **probe,
                         const struct lamprey_reason *reason)
{
    lamprey_nvml_device *devices = NULL;
    struct lamprey_probe *p = NULL;
    unsigned count = 0;

    int code = nvml->init();
    if (code != LAMPREY_NVML_SUCCESS) {
        return lamprey_reason_give(reason, EIO, "nvmlInit failed (%d)", code);
    }
    int result = ENOMEM;
    code = nvml->device_count(&count);
    if (code != LAMPREY_NVML_SUCCESS) {
        result = lamprey_reason_give(reason, EIO, "nvmlDeviceGetCount failed (%d)", code);
        goto shutdown;
    }
    p = calloc(1, sizeof(*p));
    if (p != NULL) {
        p->gpus = calloc(count + 1, sizeof(*p->gpus));
        p->p2p_refused = calloc((size_t)count * count + 1, 1);
    }
    devices = calloc(count + 1, sizeof(*devices));
    if (p == NULL || p->gpus == NULL || p->p2p_refused == NULL || devices == NULL) {
        lamprey_reason_give(reason, ENOMEM, "out of memory for %u GPUs", count);
        goto shutdown;
    }

    snprintf(p->driver, sizeof(p->driver), "unknown");
    if (nvml->driver_version != NULL &&
        nvml->driver_version(p->driver, sizeof(p->driver)) != LAMPREY_NVML_SUCCESS) {
        snprintf(p->driver, sizeof(p->driver), "unknown");
    }
    for (unsigned i = 0; i < count; i++) {
        lamprey_nvml_device *device = &devices[p->ngpus];
        if (nvml->device_by_index(i, device) == LAMPREY_NVML_SUCCESS &&
            probe_gpu(nvml, *device, &p->gpus[p->ngpus])) {
            p->ngpus++;
        }
    }
    for (size_t a = 0; a < p->ngpus; a++) {
        for (size_t b = 0; b < p->ngpus; b++) {
            p->p2p_refused[a * p->ngpus + b] =
                a != b && p2p_is_refused(nvml, devices[a], devices[b]);
        }
    }
    *probe = p;
    p = NULL;
    result = 0;

shutdown:
    nvml->shutdown();
    free(devices);
    lamprey_probe_destroy(p);
    return result;
}

void lamprey_probe_destroy(struct lamprey_probe *probe)
{
    if (probe == NULL) {
        return;
    }
    free(probe->gpus);
    free(probe->p2p_refused);
    free(probe);
}
