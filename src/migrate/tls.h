/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS 1.3 on the connections of a migration, with certificates on both sides:
 * each is signed by the CA that the other was given, and is for its side (key
 * purpose); the destination's is for the name that the source asks for. Session
 * keys are made and stay in the process whose memory is sent or arrives.
 *
 * A session never waits: what has to is -EAGAIN. One thread uses a session at a
 * time, but for one that sends while another receives, once the handshake is
 * done; credentials are not changed by their use, and outlive their sessions.
 *
 * Errors: -EPIPE, the other closed the connection; -EKEYREJECTED, it refuses
 * us, and says why (tls_refusal()); -EBADMSG, it breaks TLS, or somebody
 * between the two has changed what was sent; or of the socket.
 *
 * Source: RFC 8446; the file names are those of QEMU's tls-creds-x509.
 */
#ifndef QUIRE_MIGRATE_TLS_H
#define QUIRE_MIGRATE_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

enum tls_side { TLS_SOURCE, TLS_DESTINATION };

/* CA's certificates, our certificate (with those between), our key. */
#define TLS_NUM_FILES  3
#define TLS_MAX_NAME   253 /* of a host */
#define TLS_MAX_RECORD 16384u

/* What a connection of TLS begins with: the type of its first record. */
#define TLS_FIRST_BYTE 0x16

/*
 * Open dir's ca-cert.pem, and client-cert.pem and client-key.pem of a source,
 * server-cert.pem and server-key.pem of a destination. fds are all -1 when it
 * fails. Any thread, before the process is confined.
 */
__must_check int tls_files_open(int fds[TLS_NUM_FILES], const char *dir,
				enum tls_side side, struct err *err);
void tls_files_close(int fds[TLS_NUM_FILES]);

struct tls_credentials;

/* Read the files (which somebody else may have opened), and check them. */
__must_check int tls_credentials_new(struct tls_credentials **ret,
				     enum tls_side side,
				     const int fds[TLS_NUM_FILES],
				     struct err *err);
/* The two above in one. */
__must_check int tls_credentials_load(struct tls_credentials **ret,
				      enum tls_side side, const char *dir,
				      struct err *err);
/* NULL is fine. */
void tls_credentials_free(struct tls_credentials *c);

struct tls;

/*
 * On fd, a connected socket, which stays the caller's. host: whom the source
 * talks to, a name or an address; NULL at the destination.
 */
__must_check int tls_new(struct tls **ret, const struct tls_credentials *c,
			 int fd, const char *host, struct err *err);
/* NULL is fine. */
void tls_free(struct tls *t);

/*
 * Go on with the handshake. 0: done. -EAGAIN: again when tls_wants(). Otherwise
 * it has failed, and the other was told as far as it takes it; the connection
 * is to be closed once it has read that.
 */
__must_check int tls_handshake(struct tls *t, struct err *err);
/* POLLIN or POLLOUT: what the last call that said -EAGAIN waits for. */
short tls_wants(const struct tls *t);

/*
 * Send len bytes, TLS_MAX_RECORD at the most, as one record. 0: the socket has
 * taken it whole. After -EAGAIN the next call, with whatever arguments, goes on
 * with these bytes; until then the other can read none of them.
 */
__must_check int tls_send(struct tls *t, const void *buf, size_t len);
/* At least a byte. */
__must_check ssize_t tls_recv(struct tls *t, void *buf, size_t size);
/* Are there bytes that were read from the socket, but not by tls_recv()? */
bool tls_has_more(struct tls *t);

/* In words, after -EKEYREJECTED. */
const char *tls_refusal(const struct tls *t);

/* Tell one that begins with TLS, on a plain socket, that there is none here. */
void tls_refuse_plainly(int fd);

#endif
