/* SPDX-License-Identifier: Apache-2.0 */
#include "topology/domain.h"

#include <stdbool.h>
#include <string.h>

#include "topology/pci.h"
#include "topology/reason.h"

_Static_assert(sizeof(struct lamprey_gpu_links) == 200, "travels between ranks");
_Static_assert(sizeof(struct lamprey_domain_record) == 256, "travels between ranks");
_Static_assert(offsetof(struct lamprey_gpu_links, peers) == 56, "no padding");
_Static_assert(offsetof(struct lamprey_domain_record, pid) == 240, "no padding");

/* NVML's values in lamprey_gpu_links. */
enum {
    FABRIC_NOT_SUPPORTED = 0,
    FABRIC_COMPLETED = 3,
    FABRIC_SUCCESS = 0,
};

/* Gives the reason; 0, which is false. */
#define refuse(reason, ...) lamprey_reason_give((reason), 0, __VA_ARGS__)

static bool is_zero(const uint8_t bytes[16])
{
    static const uint8_t zero[16];
    return memcmp(bytes, zero, sizeof(zero)) == 0;
}

static bool same_host(const struct lamprey_domain_record *a, const struct lamprey_domain_record *b)
{
    return memcmp(a->host_id, b->host_id, sizeof(a->host_id)) == 0;
}

static bool same_gpu(const struct lamprey_domain_record *a, const struct lamprey_domain_record *b)
{
    if (!is_zero(a->gpu_uuid) && !is_zero(b->gpu_uuid)) {
        return memcmp(a->gpu_uuid, b->gpu_uuid, sizeof(a->gpu_uuid)) == 0;
    }
    return same_host(a, b) && a->pci_id == b->pci_id;
}

static bool records_make_sense(const struct lamprey_domain_record *records, size_t n,
                               const struct lamprey_reason *reason)
{
    for (size_t rank = 0; rank < n; rank++) {
        const struct lamprey_gpu_links *links = &records[rank].links;
        if (links->kind > LAMPREY_NVLINK_SWITCH || links->peer_count > LAMPREY_TOPOLOGY_MAX_PEERS) {
            return refuse(reason, "rank %zu's record makes no sense (NVLink kind %u, %u peers)",
                          rank, links->kind, links->peer_count);
        }
        if (links->mig != 0) {
            return refuse(reason, "rank %zu's GPU is in MIG mode, which has no NVLink", rank);
        }
    }
    return true;
}

static bool gpus_are_distinct(const struct lamprey_domain_record *records, size_t n,
                              const struct lamprey_reason *reason)
{
    bool shared = true;
    for (size_t rank = 0; rank < n; rank++) {
        shared = shared && records[rank].share_gpu != 0;
    }
    for (size_t a = 0; !shared && a < n; a++) {
        for (size_t b = a + 1; b < n; b++) {
            if (same_gpu(&records[a], &records[b])) {
                char text[LAMPREY_PCI_TEXT];
                return refuse(reason, "ranks %zu (pid %u) and %zu (pid %u) use the same GPU %s", a,
                              records[a].pid, b, records[b].pid,
                              lamprey_pci_text(records[a].pci_id, text));
            }
        }
    }
    return true;
}

static bool share_host(const struct lamprey_domain_record *records, size_t n,
                       const struct lamprey_reason *reason)
{
    for (size_t rank = 0; rank < n; rank++) {
        if (n > 1 && is_zero(records[rank].host_id)) {
            return refuse(reason, "rank %zu does not know its host", rank);
        }
        if (!same_host(&records[0], &records[rank])) {
            return refuse(reason, "ranks 0 and %zu are on different hosts", rank);
        }
    }
    return true;
}

/* Four 2-bit fields (bandwidth, two about routes, time-outs): 0 not supported, 1 bad, 2 good, and
 * 3 in one of them bad until a reset. Then 4 bits about the configuration: 0 not supported, 1 good,
 * more is a fault. What lies beyond is not known to be bad news. A healthy GPU has 0xaa or 0x1aa.
 */
static bool health_is_bad(uint32_t mask)
{
    return (mask & 0x55) != 0 || (mask >> 8 & 0xf) > 1;
}

/* One GPU as an end of NVLinks, whoever is at the other end. */
static bool has_links(const struct lamprey_gpu_links *links, size_t rank,
                      const struct lamprey_reason *reason)
{
    switch ((enum lamprey_nvlink_kind)links->kind) {
    case LAMPREY_NVLINK_UNKNOWN:
        return refuse(reason, "nothing is known of the NVLinks of rank %zu's GPU", rank);
    case LAMPREY_NVLINK_NONE:
        return refuse(reason, "rank %zu's GPU has no active NVLink", rank);
    case LAMPREY_NVLINK_DIRECT:
        return true;
    case LAMPREY_NVLINK_SWITCH:
        break;
    }
    /* Links to switches train before the fabric has routes: until then they carry nothing. */
    if (links->fabric_state != FABRIC_NOT_SUPPORTED && links->fabric_state != FABRIC_COMPLETED) {
        return refuse(reason, "the NVLink fabric of rank %zu's GPU is not up (state %u)", rank,
                      links->fabric_state);
    }
    if (links->fabric_state == FABRIC_COMPLETED && links->fabric_status != FABRIC_SUCCESS) {
        return refuse(reason, "the NVLink fabric refused rank %zu's GPU (status %u)", rank,
                      links->fabric_status);
    }
    if (links->fabric_state == FABRIC_COMPLETED && health_is_bad(links->fabric_health)) {
        return refuse(reason, "the fabric reports rank %zu's GPU unhealthy (mask 0x%x)", rank,
                      links->fabric_health);
    }
    return true;
}

/* One machine's switches may be cut into partitions, which the fabric's registration tells. */
static bool same_partition(const struct lamprey_gpu_links *a, const struct lamprey_gpu_links *b)
{
    return a->kind != LAMPREY_NVLINK_SWITCH || b->kind != LAMPREY_NVLINK_SWITCH ||
           a->fabric_state != FABRIC_COMPLETED || b->fabric_state != FABRIC_COMPLETED ||
           (a->fabric_clique == b->fabric_clique &&
            memcmp(a->fabric_uuid, b->fabric_uuid, sizeof a->fabric_uuid) == 0);
}

/* Switches reach whoever is on them; a GPU with a list is reached by its own consent below. */
static bool reaches(const struct lamprey_domain_record *from,
                    const struct lamprey_domain_record *to)
{
    const struct lamprey_gpu_links *links = &from->links;
    if (links->kind == LAMPREY_NVLINK_SWITCH) {
        return true;
    }
    for (uint32_t i = 0; i < links->peer_count; i++) {
        if (links->peers[i] == to->pci_id) {
            return true;
        }
    }
    return false;
}

static bool pairs_are_joined(const struct lamprey_domain_record *records, size_t n,
                             const struct lamprey_reason *reason)
{
    for (size_t a = 0; a < n; a++) {
        for (size_t b = a + 1; b < n; b++) {
            if (same_gpu(&records[a], &records[b])) {
                continue;
            }
            if (!has_links(&records[a].links, a, reason) ||
                !has_links(&records[b].links, b, reason)) {
                return false;
            }
            if (!same_partition(&records[a].links, &records[b].links)) {
                return refuse(reason,
                              "the GPUs of ranks %zu and %zu are in different partitions of the "
                              "NVLink fabric",
                              a, b);
            }
            if (!reaches(&records[a], &records[b]) || !reaches(&records[b], &records[a])) {
                char text_a[LAMPREY_PCI_TEXT];
                char text_b[LAMPREY_PCI_TEXT];
                return refuse(reason, "no NVLink between rank %zu's GPU %s and rank %zu's GPU %s",
                              a, lamprey_pci_text(records[a].pci_id, text_a), b,
                              lamprey_pci_text(records[b].pci_id, text_b));
            }
        }
    }
    return true;
}

static bool share_fabric(const struct lamprey_domain_record *records, size_t n,
                         const struct lamprey_reason *reason)
{
    const struct lamprey_gpu_links *first = &records[0].links;
    for (size_t rank = 0; rank < n; rank++) {
        const struct lamprey_gpu_links *links = &records[rank].links;
        if (links->fabric_state != FABRIC_COMPLETED) {
            return refuse(reason, "rank %zu's GPU is not registered with a fabric (state %u)", rank,
                          links->fabric_state);
        }
        if (links->fabric_status != FABRIC_SUCCESS) {
            return refuse(reason, "the fabric refused rank %zu's GPU (status %u)", rank,
                          links->fabric_status);
        }
        if (is_zero(links->fabric_uuid)) {
            return refuse(reason, "rank %zu's GPU belongs to no NVLink cluster", rank);
        }
        if (memcmp(links->fabric_uuid, first->fabric_uuid, sizeof(links->fabric_uuid)) != 0) {
            return refuse(reason, "ranks 0 and %zu are in different NVLink clusters", rank);
        }
        if (links->fabric_clique != first->fabric_clique) {
            return refuse(reason, "ranks 0 and %zu are in different cliques (%u, %u)", rank,
                          first->fabric_clique, links->fabric_clique);
        }
        if (health_is_bad(links->fabric_health)) {
            return refuse(reason, "the fabric reports rank %zu's GPU unhealthy (mask 0x%x)", rank,
                          links->fabric_health);
        }
        if (records[rank].fabric_off != 0) {
            return refuse(reason, "rank %zu keeps to its host (NCCL_MNNVL_ENABLE=0)", rank);
        }
    }
    return true;
}

enum lamprey_domain lamprey_domain_decide(const struct lamprey_domain_record *records, size_t n,
                                          char *reason, size_t reason_size)
{
    struct lamprey_reason whole = {.text = reason, .size = reason != NULL ? reason_size : 0};
    char host_text[160] = "";
    char fabric_text[160] = "";
    struct lamprey_reason host = {.text = host_text, .size = sizeof(host_text)};
    struct lamprey_reason fabric = {.text = fabric_text, .size = sizeof(fabric_text)};

    if (whole.size > 0) {
        whole.text[0] = '\0';
    }
    if (records == NULL || n == 0) {
        refuse(&whole, "no records");
        return LAMPREY_DOMAIN_NONE;
    }
    if (!records_make_sense(records, n, &whole)) {
        return LAMPREY_DOMAIN_NONE;
    }

    /* The linear tests come first: the pairwise ones then never see a job of thousands of ranks. */
    bool on_host = share_host(records, n, &host);
    bool on_fabric = share_fabric(records, n, &fabric);
    if (!on_host && !on_fabric) {
        refuse(&whole, "%s; %s", host_text, fabric_text);
        return LAMPREY_DOMAIN_NONE;
    }
    if (!gpus_are_distinct(records, n, &whole)) {
        return LAMPREY_DOMAIN_NONE;
    }
    if (on_host && pairs_are_joined(records, n, &host)) {
        return LAMPREY_DOMAIN_HOST;
    }
    if (on_fabric) {
        return LAMPREY_DOMAIN_FABRIC;
    }
    refuse(&whole, "%s", host_text);
    return LAMPREY_DOMAIN_NONE;
}

const char *lamprey_domain_name(enum lamprey_domain domain)
{
    switch (domain) {
    case LAMPREY_DOMAIN_NONE:
        return "none";
    case LAMPREY_DOMAIN_HOST:
        return "host";
    case LAMPREY_DOMAIN_FABRIC:
        return "fabric";
    }
    return "invalid";
}
