/* SPDX-License-Identifier: Apache-2.0 */
/* Passes descriptors between the processes of one host: a Unix socket with an unguessable abstract
 * name per rank and set-up. Both ends check that the other runs under the same user. */
#ifndef LAMPREY_PLUGIN_MAILBOX_H
#define LAMPREY_PLUGIN_MAILBOX_H

#include <stdint.h>

#ifdef __cplusplus
#include <atomic>
using std::atomic_bool;
#else
#include <stdatomic.h>
#endif

#include "plugin/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct lamprey_mailbox {
    int listener;      /* -1: closed */
    uint8_t token[16]; /* random; names the socket */
};

/* Listens for up to backlog senders. The token is all that a sender needs. */
enum lamprey_status lamprey_mailbox_open(struct lamprey_mailbox *mailbox, int backlog);

/* Closes; fine on a closed one. */
void lamprey_mailbox_close(struct lamprey_mailbox *mailbox);

/* Puts descriptor and the sender's rank into the mailbox that token names. Doesn't wait for the
 * receiver. */
enum lamprey_status lamprey_mailbox_send(const uint8_t token[16], uint32_t rank, int descriptor);

/* Takes one message: rank and descriptor (the caller closes it).
 * Connections of other users and malformed messages are dropped. LAMPREY_ERROR_TIMEOUT after
 * timeout_ms, LAMPREY_ERROR_ABORTED soon after *aborted is set. */
enum lamprey_status lamprey_mailbox_receive(const struct lamprey_mailbox *mailbox, int timeout_ms,
                                            const atomic_bool *aborted, uint32_t *rank,
                                            int *descriptor);

#ifdef __cplusplus
}
#endif

#endif
