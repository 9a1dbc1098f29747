/* SPDX-License-Identifier: Apache-2.0 */
/* PCI ids (lamprey_pci_id) as text, and as devices without their function. */
#ifndef LAMPREY_TOPOLOGY_PCI_H
#define LAMPREY_TOPOLOGY_PCI_H

#include <ctype.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "topology/topology.h"

#ifdef __cplusplus
extern "C" {
#endif

/* No device has this id. */
#define LAMPREY_PCI_UNKNOWN UINT64_MAX

enum { LAMPREY_PCI_TEXT = 32 };

static inline const char *lamprey_pci_text(uint64_t id, char text[LAMPREY_PCI_TEXT]) {
    snprintf(text, LAMPREY_PCI_TEXT, "%04" PRIx64 ":%02x:%02x.%x", id >> 16,
             (unsigned)(id >> 8 & 0xff), (unsigned)(id >> 3 & 0x1f), (unsigned)(id & 7));
    return text;
}

/* Reads "domain:bus:device.function" in hexadecimal. end, where not NULL, gets the first character
 * behind it; where NULL, nothing may follow. */
static inline bool lamprey_pci_parse(const char *text, uint64_t *id, const char **end) {
    unsigned domain = 0;
    unsigned bus = 0;
    unsigned device = 0;
    unsigned function = 0;
    int length = 0;
    if (!isxdigit((unsigned char)text[0]) ||
        sscanf(text, "%8x:%2x:%2x.%1x%n", &domain, &bus, &device, &function, &length) != 4 ||
        device > 0x1f || function > 7 || (end == NULL && text[length] != '\0')) {
        return false;
    }
    if (end != NULL) {
        *end = text + length;
    }
    *id = lamprey_pci_id(domain, bus, device, function);
    return true;
}

/* The device without its function: NVML and CUDA don't report functions. */
static inline bool lamprey_pci_same_device(uint64_t a, uint64_t b) {
    return a >> 3 == b >> 3;
}

#ifdef __cplusplus
}
#endif

#endif
