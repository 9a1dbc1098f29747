/* SPDX-License-Identifier: Apache-2.0 */
/* The workspaces of lamprey.h that this process has. */
#ifndef LAMPREY_PLUGIN_WORKSPACES_H
#define LAMPREY_PLUGIN_WORKSPACES_H

#include "plugin/comm.h"
#include "plugin/lamprey.h"

/* The world of a workspace, with one more reference; NULL: there is no such workspace, or a fork
 * lies between. Takes no lock that a launch or a creation holds. */
struct lamprey_comm *lamprey_workspaces_find(lampreyWorkspace_t workspace);

#endif
