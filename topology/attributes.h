/* SPDX-License-Identifier: Apache-2.0 */
/* How the probe's findings are named inside an hwloc topology, and so in its XML. An attribute that
 * is absent is unknown. A process-local number (CUDA's ordinal, NVML's index) never goes in. */
#ifndef LAMPREY_TOPOLOGY_ATTRIBUTES_H
#define LAMPREY_TOPOLOGY_ATTRIBUTES_H

/* On the root: who probed ("nvml <driver version>"), and in what form it is written down. */
#define LAMPREY_ATTRIBUTE_PROBE "NVLinkProbe"
#define LAMPREY_ATTRIBUTE_VERSION "NVLinkProbeVersion"
#define LAMPREY_ATTRIBUTE_VERSION_TEXT "1"

/* On each GPU: a PCI device, or where hwloc sees no such device (containers without PCI in sysfs,
 * domains beyond its 16 bits) a Misc object of this name under the root, with the PCI id as
 * attribute. */
#define LAMPREY_ATTRIBUTE_MISC_GPU "NVIDIAGPU"
#define LAMPREY_ATTRIBUTE_PCI_ID "PCIBusID"

#define LAMPREY_ATTRIBUTE_UUID "NVIDIAUUID"
#define LAMPREY_ATTRIBUTE_MODEL "GPUModel"
#define LAMPREY_ATTRIBUTE_SM "CUDAComputeCapability" /* "9.0" */
#define LAMPREY_ATTRIBUTE_LINK_COUNT "NVLinkCount"
#define LAMPREY_ATTRIBUTE_LINKS_ACTIVE "NVLinkActive" /* without those that end at CPUs */
#define LAMPREY_ATTRIBUTE_LINK_MBPS "NVLinkSpeed"     /* one link, one direction, MB/s */
#define LAMPREY_ATTRIBUTE_REMOTE "NVLinkRemote"       /* none, gpu, switch or mixed */
#define LAMPREY_ATTRIBUTE_HIDDEN "NVLinkRemoteHidden" /* 1: the driver hides the other ends */
#define LAMPREY_ATTRIBUTE_PEERS "NVLinkPeers"         /* PCI ids, separated by blanks */
#define LAMPREY_ATTRIBUTE_MIG "GPUMIGMode"
#define LAMPREY_ATTRIBUTE_FABRIC_STATE "GPUFabricState"
#define LAMPREY_ATTRIBUTE_FABRIC_STATUS "GPUFabricStatus"
#define LAMPREY_ATTRIBUTE_FABRIC_UUID "GPUFabricClusterUUID" /* 32 hexadecimal digits */
#define LAMPREY_ATTRIBUTE_FABRIC_CLIQUE "GPUFabricCliqueID"
#define LAMPREY_ATTRIBUTE_FABRIC_HEALTH "GPUFabricHealthMask" /* hexadecimal, with 0x */
#define LAMPREY_ATTRIBUTE_CHASSIS "GPUChassis"                /* a number made of its serial */

/* Distances (FROM_USER, MEANS_BANDWIDTH) over all GPUs where there are two or more: MB/s in one
 * direction over direct links and across switches; 0: no way, or peer access ruled out. Symmetric,
 * diagonal 0. hwloc's own NVLinkBandwidth is something else: it ends at the switches. */
#define LAMPREY_ATTRIBUTE_MATRIX "NVLinkPeerBandwidth"

#endif
