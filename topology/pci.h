/* SPDX-License-Identifier: Apache-2.0 */
/* PCI ids (lamprey_pci_id) as text, and as devices without their function. */
#ifndef LAMPREY_TOPOLOGY_PCI_H
#define LAMPREY_TOPOLOGY_PCI_H

#include <ctype.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "topology/topology.h"

#ifdef __cplusplus
extern "C" {
#endif

/* No device has this id. */
#define LAMPREY_PCI_UNKNOWN UINT64_MAX

enum { LAMPREY_PCI_TEXT = 32 };

static inline const char *lamprey_pci_text(uint64_t id, char text[LAMPREY_PCI_TEXT])
{
    snprintf(text, LAMPREY_PCI_TEXT, "%04" PRIx64 ":%02x:%02x.%x", id >> 16,
             (unsigned)(id >> 8 & 0xff), (unsigned)(id >> 3 & 0x1f), (unsigned)(id & 7));
    return text;
}

/* Hexadecimal digits, at most digits of them, and the separator behind them unless it is 0. */
static inline bool lamprey_pci_part(const char **text, int digits, char separator, uint32_t *value)
{
    const char *start = *text;
    *value = 0;
    for (; *text - start < digits && isxdigit((unsigned char)**text); (*text)++) {
        char c = **text;
        uint32_t digit = (uint32_t)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
        *value = *value << 4 | digit;
    }
    if (*text == start || (separator != '\0' && **text != separator)) {
        return false;
    }
    *text += separator != '\0';
    return true;
}

/* Reads "domain:bus:device.function" in hexadecimal. end, where not NULL, gets the first character
 * behind it; where NULL, nothing may follow. */
static inline bool lamprey_pci_parse(const char *text, uint64_t *id, const char **end)
{
    uint32_t domain = 0;
    uint32_t bus = 0;
    uint32_t device = 0;
    uint32_t function = 0;
    if (!lamprey_pci_part(&text, 8, ':', &domain) || !lamprey_pci_part(&text, 2, ':', &bus) ||
        !lamprey_pci_part(&text, 2, '.', &device) || !lamprey_pci_part(&text, 1, '\0', &function) ||
        device > 0x1f || function > 7 || (end == NULL && *text != '\0')) {
        return false;
    }
    if (end != NULL) {
        *end = text;
    }
    *id = lamprey_pci_id(domain, bus, device, function);
    return true;
}

/* The device without its function: NVML and CUDA don't report functions. */
static inline bool lamprey_pci_same_device(uint64_t a, uint64_t b)
{
    return a >> 3 == b >> 3;
}

#ifdef __cplusplus
}
#endif

#endif
