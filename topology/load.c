/* SPDX-License-Identifier: Apache-2.0 */
#include "topology/load.h"

#include <errno.h>
#include <string.h>

#include "topology/annotate.h"
#include "topology/nvml.h"
#include "topology/tree.h"

/* The tree of this machine, annotated as far as NVML answers. */
static int load_annotated(const char *library, hwloc_topology_t *tree,
                          const struct lamprey_reason *note, const struct lamprey_reason *reason)
{
    int result = lamprey_tree_load(NULL, tree, reason);
    if (result != 0) {
        return result;
    }
    struct lamprey_nvml nvml;
    lamprey_reason_give(note, 0, "%s", "");
    if (lamprey_annotate_wanted(*tree) && lamprey_nvml_load(library, &nvml, note) == 0) {
        if (lamprey_annotate(*tree, &nvml, note) != 0) {
            /* Half an annotation is worse than none. */
            hwloc_topology_destroy(*tree);
            result = lamprey_tree_load(NULL, tree, reason);
        }
    }
    return result;
}

int lamprey_load(const char *xml_path, const char *nvml, const char *export_path,
                 struct lamprey_machine **machine, const struct lamprey_reason *note,
                 const struct lamprey_reason *reason)
{
    hwloc_topology_t tree = NULL;
    struct lamprey_machine *fresh = NULL;
    int result = xml_path != NULL ? lamprey_tree_load(xml_path, &tree, reason)
                                  : load_annotated(nvml, &tree, note, reason);
    if (result != 0) {
        return result;
    }
    result = lamprey_machine_create(tree, &fresh, reason);
    if (result == 0 && export_path != NULL &&
        hwloc_topology_export_xml(tree, export_path, 0) != 0) {
        result = lamprey_reason_give(reason, EIO, "hwloc cannot write %s: %s", export_path,
                                     strerror(errno));
    }
    hwloc_topology_destroy(tree);
    if (result != 0) {
        lamprey_machine_destroy(fresh);
        return result;
    }
    *machine = fresh;
    return 0;
}

int lamprey_load_live(const char *nvml, struct lamprey_machine **machine,
                      const struct lamprey_reason *note, const struct lamprey_reason *reason)
{
    return lamprey_load(NULL, nvml, NULL, machine, note, reason);
}

int lamprey_load_file(const char *xml_path, struct lamprey_machine **machine,
                      const struct lamprey_reason *reason)
{
    return lamprey_load(xml_path, NULL, NULL, machine, NULL, reason);
}
