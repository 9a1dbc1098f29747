/* SPDX-License-Identifier: Apache-2.0 */
/* The part of NVML that the probe needs: own declarations, since the toolkit's header is not on
 * every machine that builds, and a table of entry points filled from libnvidia-ml.so.1 at run time.
 * Tests put their own functions into the table. */
#ifndef LAMPREY_TOPOLOGY_NVML_H
#define LAMPREY_TOPOLOGY_NVML_H

#include "topology/reason.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Return codes; any other value counts as an unknown failure. */
enum {
    LAMPREY_NVML_SUCCESS = 0,
    LAMPREY_NVML_INVALID_ARGUMENT = 2,
    LAMPREY_NVML_NOT_SUPPORTED = 3,
};

/* Fields of DeviceGetFieldValues. */
enum {
    LAMPREY_NVML_FIELD_LINK_COUNT = 91,
    LAMPREY_NVML_FIELD_LINK_SPEED = 164, /* scope: link; MB/s, one direction */
    LAMPREY_NVML_FIELD_LINK_STATE = 165, /* scope: link; 1 = active; sm_90 and later */
};

enum lamprey_nvml_value_type {
    LAMPREY_NVML_TYPE_DOUBLE,
    LAMPREY_NVML_TYPE_UINT,
    LAMPREY_NVML_TYPE_ULONG,
    LAMPREY_NVML_TYPE_ULONGLONG,
    LAMPREY_NVML_TYPE_LONGLONG,
    LAMPREY_NVML_TYPE_INT,
    LAMPREY_NVML_TYPE_USHORT,
};

/* What a link ends at. */
enum {
    LAMPREY_NVML_REMOTE_GPU = 0,
    LAMPREY_NVML_REMOTE_CPU = 1,
    LAMPREY_NVML_REMOTE_SWITCH = 2,
    LAMPREY_NVML_REMOTE_UNKNOWN = 255,
};

enum {
    LAMPREY_NVML_LINK_CAP_P2P = 0,
};

enum {
    LAMPREY_NVML_P2P_READ = 0,
    LAMPREY_NVML_P2P_WRITE = 1,
    LAMPREY_NVML_P2P_NVLINK = 2,
};

/* A device that this process may not see has this domain. */
#define LAMPREY_NVML_PCI_HIDDEN 0xffffffffu

struct lamprey_nvml_pci {
    char bus_id_legacy[16];
    unsigned domain;
    unsigned bus;
    unsigned device;
    unsigned device_id;
    unsigned subsystem_id;
    char bus_id[32];
};

struct lamprey_nvml_field {
    unsigned id;
    unsigned scope;
    long long timestamp;
    long long latency;
    unsigned type; /* enum lamprey_nvml_value_type */
    int result;
    union {
        double floating;
        unsigned uint_value;
        unsigned long ulong_value;
        unsigned long long ulonglong_value;
        long long longlong_value;
        int int_value;
        unsigned short ushort_value;
    } value;
};

/* The first call without a version, the versioned one in its second and third form. */
struct lamprey_nvml_fabric_v1 {
    unsigned char cluster_uuid[16];
    int status;
    unsigned clique;
    unsigned state;
};

struct lamprey_nvml_fabric {
    unsigned version; /* LAMPREY_NVML_FABRIC_VERSION_... */
    unsigned char cluster_uuid[16];
    int status;
    unsigned clique;
    unsigned char state;
    unsigned health;       /* mask */
    unsigned char summary; /* third form only */
};

#define LAMPREY_NVML_FABRIC_VERSION_2 0x02000024u
#define LAMPREY_NVML_FABRIC_VERSION_3 0x03000028u

struct lamprey_nvml_platform {
    unsigned version;
    unsigned char ib_guid[16];
    unsigned char chassis_serial[16];
    unsigned char slot;
    unsigned char tray;
    unsigned char host;
    unsigned char peer_type;
    unsigned char module;
};

#define LAMPREY_NVML_PLATFORM_VERSION_2 0x0200002cu

typedef void *lamprey_nvml_device;

/* X(member, symbol, required, parameters); every one returns an NVML code. The plain names of some
 * of these are an older ABI with other structs: the suffix is part of the symbol. */
#define LAMPREY_NVML_FUNCTIONS(X)                                                                  \
    X(init, nvmlInit_v2, 1, (void))                                                                \
    X(shutdown, nvmlShutdown, 1, (void))                                                           \
    X(driver_version, nvmlSystemGetDriverVersion, 0, (char *text, unsigned size))                  \
    X(device_count, nvmlDeviceGetCount_v2, 1, (unsigned *count))                                   \
    X(device_by_index, nvmlDeviceGetHandleByIndex_v2, 1,                                           \
      (unsigned index, lamprey_nvml_device *device))                                               \
    X(pci_info, nvmlDeviceGetPciInfo_v3, 1,                                                        \
      (lamprey_nvml_device device, struct lamprey_nvml_pci * pci))                                 \
    X(uuid, nvmlDeviceGetUUID, 0, (lamprey_nvml_device device, char *text, unsigned size))         \
    X(name, nvmlDeviceGetName, 0, (lamprey_nvml_device device, char *text, unsigned size))         \
    X(compute_capability, nvmlDeviceGetCudaComputeCapability, 0,                                   \
      (lamprey_nvml_device device, int *major, int *minor))                                        \
    X(mig_mode, nvmlDeviceGetMigMode, 0,                                                           \
      (lamprey_nvml_device device, unsigned *current, unsigned *pending))                          \
    X(field_values, nvmlDeviceGetFieldValues, 0,                                                   \
      (lamprey_nvml_device device, int count, struct lamprey_nvml_field *fields))                  \
    X(link_capability, nvmlDeviceGetNvLinkCapability, 0,                                           \
      (lamprey_nvml_device device, unsigned link, int capability, unsigned *result))               \
    X(link_state, nvmlDeviceGetNvLinkState, 0,                                                     \
      (lamprey_nvml_device device, unsigned link, int *active))                                    \
    X(link_remote_type, nvmlDeviceGetNvLinkRemoteDeviceType, 0,                                    \
      (lamprey_nvml_device device, unsigned link, int *type))                                      \
    X(link_remote_pci, nvmlDeviceGetNvLinkRemotePciInfo_v2, 0,                                     \
      (lamprey_nvml_device device, unsigned link, struct lamprey_nvml_pci *pci))                   \
    X(p2p_status, nvmlDeviceGetP2PStatus, 0,                                                       \
      (lamprey_nvml_device a, lamprey_nvml_device b, int index, int *status))                      \
    X(fabric_info, nvmlDeviceGetGpuFabricInfoV, 0,                                                 \
      (lamprey_nvml_device device, struct lamprey_nvml_fabric * fabric))                           \
    X(fabric_info_v1, nvmlDeviceGetGpuFabricInfo, 0,                                               \
      (lamprey_nvml_device device, struct lamprey_nvml_fabric_v1 * fabric))                        \
    X(platform_info, nvmlDeviceGetPlatformInfo, 0,                                                 \
      (lamprey_nvml_device device, struct lamprey_nvml_platform * platform))

struct lamprey_nvml {
#define LAMPREY_NVML_MEMBER(member, symbol, required, parameters) int(*member) parameters;
    LAMPREY_NVML_FUNCTIONS(LAMPREY_NVML_MEMBER)
#undef LAMPREY_NVML_MEMBER
};

/* Fills the table from library, a soname or a path; a symbol that isn't required may stay NULL.
 * ENOENT with a reason when the library or a required symbol is missing. The library stays loaded.
 * Does not call into it. */
int lamprey_nvml_load(const char *library, struct lamprey_nvml *nvml,
                      const struct lamprey_reason *reason);

#ifdef __cplusplus
}
#endif

#endif
