/* SPDX-License-Identifier: Apache-2.0 */
#include "topology/tree.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "topology/attributes.h"
#include "topology/pci.h"
#include "topology/xml.h"

enum {
    VENDOR_NVIDIA = 0x10de,
    BASE_CLASS_DISPLAY = 0x03,
};

/* The first six start GPU drivers and their run-times in the user's process, x86 moves the calling
 * thread over all processors, pci takes libpciaccess, which leaks. What is left reads sysfs. */
static const char *const unwanted_components[] = {
    "opencl", "cuda", "nvml", "gl", "rsmi", "levelzero", "x86", "pci",
};

static int configure(hwloc_topology_t tree, const char *xml_path,
                     const struct lamprey_reason *reason)
{
    size_t n = sizeof(unwanted_components) / sizeof(*unwanted_components);
    for (size_t i = 0; i < n; i++) {
        /* Fails where the component doesn't exist, which is as good. */
        hwloc_topology_set_components(tree, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST,
                                      unwanted_components[i]);
    }
    if (hwloc_topology_set_io_types_filter(tree, HWLOC_TYPE_FILTER_KEEP_IMPORTANT) != 0 ||
        hwloc_topology_set_type_filter(tree, HWLOC_OBJ_MISC, HWLOC_TYPE_FILTER_KEEP_ALL) != 0) {
        return lamprey_reason_give(reason, EIO, "hwloc refused a filter: %s", strerror(errno));
    }
    if (xml_path == NULL) {
        return 0;
    }
    /* hwloc takes "-" for its standard input, and says EINVAL for everything. */
    if (strcmp(xml_path, "-") == 0) {
        return lamprey_reason_give(reason, EIO, "the topology must be a file, not \"-\"");
    }
    int result = lamprey_xml_check(xml_path, reason);
    if (result != 0) {
        return result;
    }
    if (hwloc_topology_set_xml(tree, xml_path) != 0) {
        return lamprey_reason_give(reason, EIO, "hwloc cannot read %s as XML", xml_path);
    }
    return 0;
}

int lamprey_tree_load(const char *xml_path, hwloc_topology_t *tree,
                      const struct lamprey_reason *reason)
{
    /* A program may have brought its own hwloc, which then answers to these names. */
    unsigned version = hwloc_get_api_version();
    if (version >> 16 != HWLOC_API_VERSION >> 16) {
        return lamprey_reason_give(reason, EIO, "hwloc has API version 0x%x, built for 0x%x",
                                   version, (unsigned)HWLOC_API_VERSION);
    }
    hwloc_topology_t new_tree = NULL;
    if (hwloc_topology_init(&new_tree) != 0) {
        return lamprey_reason_give(reason, EIO, "hwloc does not start: %s", strerror(errno));
    }
    int result = configure(new_tree, xml_path, reason);
    if (result == 0 && hwloc_topology_load(new_tree) != 0) {
        result = xml_path != NULL
                     ? lamprey_reason_give(reason, EIO,
                                           "%s is no topology that this hwloc reads, or is damaged",
                                           xml_path)
                     : lamprey_reason_give(reason, EIO, "hwloc cannot read this machine: %s",
                                           strerror(errno));
    }
    if (result != 0) {
        hwloc_topology_destroy(new_tree);
        return result;
    }
    *tree = new_tree;
    return 0;
}

static bool is_gpu(hwloc_obj_t object)
{
    return object->attr->pcidev.vendor_id == VENDOR_NVIDIA &&
           object->attr->pcidev.class_id >> 8 == BASE_CLASS_DISPLAY;
}

static bool is_misc_gpu(hwloc_obj_t object)
{
    return object->name != NULL && strcmp(object->name, LAMPREY_ATTRIBUTE_MISC_GPU) == 0;
}

static hwloc_obj_t next_misc(hwloc_topology_t tree, hwloc_obj_t previous)
{
    return hwloc_get_next_obj_by_depth(tree, HWLOC_TYPE_DEPTH_MISC, previous);
}

int lamprey_tree_gpus(hwloc_topology_t tree, struct lamprey_tree_gpu **gpus, size_t *ngpus,
                      const struct lamprey_reason *reason)
{
    int depths[] = {HWLOC_TYPE_DEPTH_PCI_DEVICE, HWLOC_TYPE_DEPTH_MISC};
    size_t most = 1; /* calloc(0) may give NULL */
    for (size_t i = 0; i < sizeof(depths) / sizeof(*depths); i++) {
        most += hwloc_get_nbobjs_by_depth(tree, depths[i]);
    }
    struct lamprey_tree_gpu *list = calloc(most, sizeof(*list));
    if (list == NULL) {
        return lamprey_reason_give(reason, ENOMEM, "out of memory for %zu devices", most);
    }

    size_t n = 0;
    for (hwloc_obj_t pci = NULL; (pci = hwloc_get_next_pcidev(tree, pci)) != NULL;) {
        if (is_gpu(pci)) {
            const struct hwloc_pcidev_attr_s *at = &pci->attr->pcidev;
            list[n].object = pci;
            list[n++].pci_id = lamprey_pci_id(at->domain, at->bus, at->dev, at->func);
        }
    }
    for (hwloc_obj_t misc = NULL; (misc = next_misc(tree, misc)) != NULL;) {
        if (!is_misc_gpu(misc)) {
            continue;
        }
        const char *text = hwloc_obj_get_info_by_name(misc, LAMPREY_ATTRIBUTE_PCI_ID);
        if (text == NULL || !lamprey_pci_parse(text, &list[n].pci_id, NULL)) {
            free(list);
            return lamprey_reason_give(reason, EIO, "a Misc object %s has no valid %s (%s)",
                                       LAMPREY_ATTRIBUTE_MISC_GPU, LAMPREY_ATTRIBUTE_PCI_ID,
                                       text != NULL ? text : "none");
        }
        list[n++].object = misc;
    }
    *gpus = list;
    *ngpus = n;
    return 0;
}
