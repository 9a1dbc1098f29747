/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/door_attach.h"

#include "plugin/attach.h"
#include "plugin/door_enter.h"

LAMPREY_DOOR_EXPORT int lampreyAttachLoaded(const char *door)
{
    return lamprey_attach_loaded(door);
}
