/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. GnuTLS does the work over two callbacks that never wait
 * and never raise SIGPIPE. In the handshake they count: what the other may say
 * before it has shown who it is, is limited, in bytes here and in time by who
 * calls.
 *
 * With TLS 1.3 the source is through with its handshake before the destination
 * has looked at its certificate: a refusal is what it reads next.
 */
#include "migrate/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#include "base/arith.h"
#include "base/cleanup.h"

#define MAX_FILE_BYTES	    (256u << 10)
#define MAX_HANDSHAKE_BYTES (128u << 10)

/*
 * 1.3 only: both sides are quire. The shorter key first, since it is faster,
 * and strong enough; RSA from 2048 bits on.
 */
#define PRIORITY                                                 \
	"NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM" \
	":+AES-256-GCM:+CHACHA20-POLY1305:%PROFILE_MEDIUM"

struct tls_credentials {
	enum tls_side side;
	gnutls_certificate_credentials_t x509;
	gnutls_priority_t priority;
};

struct tls {
	gnutls_session_t session;
	enum tls_side side;
	int fd;
	char *host; /* NULL: of a destination */
	bool done;  /* the handshake */
	/*
	 * Of all below, and the session: with post-copy one thread asks for
	 * pages while another takes them. Nobody waits for the socket with it.
	 */
	pthread_mutex_t lock;
	uint64_t handshake_bytes;
	int error;   /* errno of the socket */
	bool unsent; /* a record is on its way */
	/* Why the other's certificate is refused, and what it is told. */
	char why[160];
	gnutls_alert_description_t alert;
};

/* ---- files ---- */

static const char *const file_names[][TLS_NUM_FILES] = {
	[TLS_SOURCE] = { "ca-cert.pem", "client-cert.pem", "client-key.pem" },
	[TLS_DESTINATION] = { "ca-cert.pem", "server-cert.pem",
			      "server-key.pem" },
};

int tls_files_open(int fds[TLS_NUM_FILES], const char *dir, enum tls_side side,
		   struct err *err)
{
	_cleanup_close_ int dir_fd = open(dir,
					  O_PATH | O_DIRECTORY | O_CLOEXEC);
	int error = 0;

	for (unsigned int i = 0; i < TLS_NUM_FILES; i++)
		fds[i] = -1;
	if (dir_fd < 0)
		return err_errno(err, errno, "TLS credentials: %s", dir);
	for (unsigned int i = 0; !error && i < TLS_NUM_FILES; i++) {
		/* A pipe is nothing to wait for. */
		fds[i] = openat(dir_fd, file_names[side][i],
				O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		if (fds[i] >= 0)
			continue;
		error = err_errno(err, errno, "TLS credentials: %s/%s", dir,
				  file_names[side][i]);
		tls_files_close(fds);
	}
	return error;
}

void tls_files_close(int fds[TLS_NUM_FILES])
{
	for (unsigned int i = 0; i < TLS_NUM_FILES; i++)
		close_fd(&fds[i]);
}

struct file {
	uint8_t *bytes; /* NULL: not read */
	size_t len;
};

static int read_file(struct file *ret, int fd, const char *name,
		     struct err *err)
{
	ssize_t n = 1;

	ret->bytes = malloc(MAX_FILE_BYTES + 1);
	if (!ret->bytes)
		return err_set(err, ENOMEM, "out of memory");
	while (ret->len <= MAX_FILE_BYTES && n) {
		n = pread(fd, ret->bytes + ret->len,
			  MAX_FILE_BYTES + 1 - ret->len, (off_t)ret->len);
		if (n < 0)
			return err_errno(err, errno, "TLS credentials: %s",
					 name);
		ret->len += (size_t)n;
	}
	return ret->len > MAX_FILE_BYTES
		       ? err_set(err, EFBIG,
				 "TLS credentials: %s: more than %u bytes",
				 name, MAX_FILE_BYTES)
		       : 0;
}

static void forget_file(struct file *f)
{
	if (f->bytes)
		explicit_bzero(f->bytes, MAX_FILE_BYTES + 1);
	free(f->bytes);
}

/* ---- credentials ---- */

static int use_files(struct tls_credentials *c, const struct file *files,
		     struct err *err)
{
	const char *const *names = file_names[c->side];
	gnutls_datum_t data[TLS_NUM_FILES];
	int r;

	for (unsigned int i = 0; i < TLS_NUM_FILES; i++)
		data[i] = (gnutls_datum_t){ files[i].bytes,
					    (unsigned int)files[i].len };
	r = gnutls_certificate_set_x509_trust_mem(c->x509, &data[0],
						  GNUTLS_X509_FMT_PEM);
	if (r <= 0)
		return err_set(err, EINVAL, "TLS credentials: %s: %s", names[0],
			       r ? gnutls_strerror(r) : "no certificate");
	r = gnutls_certificate_set_x509_key_mem2(c->x509, &data[1], &data[2],
						 GNUTLS_X509_FMT_PEM, NULL, 0);
	if (r)
		return err_set(err, EINVAL, "TLS credentials: %s and %s: %s",
			       names[1], names[2], gnutls_strerror(r));
	return 0;
}

static int set_up(struct tls_credentials *c, struct err *err)
{
	int r = gnutls_certificate_allocate_credentials(&c->x509);

	if (!r)
		r = gnutls_priority_init(&c->priority, PRIORITY, NULL);
	return r ? err_set(err, ENOTSUP, "TLS: %s", gnutls_strerror(r)) : 0;
}

int tls_credentials_new(struct tls_credentials **ret, enum tls_side side,
			const int fds[TLS_NUM_FILES], struct err *err)
{
	struct tls_credentials *c = calloc(1, sizeof(*c));
	struct file files[TLS_NUM_FILES] = { { .bytes = NULL } };
	int r = 0;

	if (!c)
		return err_set(err, ENOMEM, "out of memory");
	for (unsigned int i = 0; !r && i < TLS_NUM_FILES; i++)
		r = read_file(&files[i], fds[i], file_names[side][i], err);
	if (!r) {
		c->side = side;
		r = set_up(c, err);
	}
	if (!r)
		r = use_files(c, files, err);
	for (unsigned int i = 0; i < TLS_NUM_FILES; i++)
		forget_file(&files[i]);
	if (r)
		tls_credentials_free(c);
	else
		*ret = c;
	return r;
}

int tls_credentials_load(struct tls_credentials **ret, enum tls_side side,
			 const char *dir, struct err *err)
{
	int fds[TLS_NUM_FILES];
	int r = tls_files_open(fds, dir, side, err);

	if (r)
		return r;
	r = tls_credentials_new(ret, side, fds, err);
	tls_files_close(fds);
	if (r)
		err_prefix(err, "%s", dir);
	return r;
}

void tls_credentials_free(struct tls_credentials *c)
{
	if (!c)
		return;
	if (c->x509)
		gnutls_certificate_free_credentials(c->x509);
	if (c->priority)
		gnutls_priority_deinit(c->priority);
	free(c);
}

/* ---- what goes over the socket ---- */

static ssize_t fail_with(struct tls *t, int error)
{
	if (error != EAGAIN && error != EINTR)
		t->error = error;
	gnutls_transport_set_errno(t->session, error);
	return -1;
}

static ssize_t push(gnutls_transport_ptr_t ctx, const giovec_t *iov, int num)
{
	struct tls *t = ctx;
	struct msghdr msg = {
		.msg_iov = (struct iovec *)iov,
		.msg_iovlen = (size_t)num,
	};
	ssize_t n = sendmsg(t->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);

	return n < 0 ? fail_with(t, errno) : n;
}

static ssize_t pull(gnutls_transport_ptr_t ctx, void *buf, size_t size)
{
	struct tls *t = ctx;
	ssize_t n;

	if (!t->done && t->handshake_bytes >= MAX_HANDSHAKE_BYTES)
		return fail_with(t, EMSGSIZE);
	n = recv(t->fd, buf, size, MSG_DONTWAIT);
	if (n < 0)
		return fail_with(t, errno);
	if (!t->done)
		t->handshake_bytes += (uint64_t)n;
	return n;
}

/* ---- a session ---- */

static gnutls_alert_description_t alert_for(unsigned int status)
{
	if (status & (GNUTLS_CERT_SIGNER_NOT_FOUND | GNUTLS_CERT_SIGNER_NOT_CA))
		return GNUTLS_A_UNKNOWN_CA;
	if (status & GNUTLS_CERT_EXPIRED)
		return GNUTLS_A_CERTIFICATE_EXPIRED;
	return GNUTLS_A_BAD_CERTIFICATE;
}

static void explain_status(struct tls *t, unsigned int status)
{
	gnutls_datum_t text;

	t->alert = alert_for(status);
	if (gnutls_certificate_verification_status_print(
		    status, GNUTLS_CRT_X509, &text, 0))
		return;
	snprintf(t->why, sizeof(t->why), "%s", text.data);
	gnutls_free(text.data);
	/* It ends its sentences with a space. */
	for (size_t n = strlen(t->why);
	     n && (t->why[n - 1] == ' ' || t->why[n - 1] == '.'); n--)
		t->why[n - 1] = '\0';
}

/* Not 0: the other is not who it has to be. */
static int verify(gnutls_session_t session)
{
	struct tls *t = gnutls_session_get_ptr(session);
	gnutls_typed_vdata_st data[] = {
		{ GNUTLS_DT_KEY_PURPOSE_OID,
		  (unsigned char *)(t->side == TLS_SOURCE
					    ? GNUTLS_KP_TLS_WWW_SERVER
					    : GNUTLS_KP_TLS_WWW_CLIENT),
		  0 },
		{ GNUTLS_DT_DNS_HOSTNAME, (unsigned char *)t->host, 0 },
	};
	unsigned int status = 0;
	int r = gnutls_certificate_verify_peers(session, data, t->host ? 2 : 1,
						&status);

	if (!r && !status)
		return 0;
	t->alert = GNUTLS_A_BAD_CERTIFICATE;
	if (r)
		snprintf(t->why, sizeof(t->why), "%s", gnutls_strerror(r));
	else
		explain_status(t, status);
	return -1;
}

static int start(struct tls *t, const struct tls_credentials *c)
{
	unsigned int flags = GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS |
			     GNUTLS_NO_SIGNAL |
			     (c->side == TLS_SOURCE ? GNUTLS_CLIENT
						    : GNUTLS_SERVER);
	int r = gnutls_init(&t->session, flags);

	if (!r)
		r = gnutls_priority_set(t->session, c->priority);
	if (!r)
		r = gnutls_credentials_set(t->session, GNUTLS_CRD_CERTIFICATE,
					   c->x509);
	if (r)
		return r;
	gnutls_session_set_ptr(t->session, t);
	gnutls_session_set_verify_function(t->session, verify);
	gnutls_transport_set_ptr(t->session, t);
	gnutls_transport_set_vec_push_function(t->session, push);
	gnutls_transport_set_pull_function(t->session, pull);
	gnutls_handshake_set_max_packet_length(t->session,
					       MAX_HANDSHAKE_BYTES / 2);
	if (c->side == TLS_SOURCE)
		return 0;
	gnutls_certificate_server_set_request(t->session, GNUTLS_CERT_REQUIRE);
	/* A source of another CA is to be told so, not to hold back its own. */
	gnutls_certificate_send_x509_rdn_sequence(t->session, 1);
	return 0;
}

int tls_new(struct tls **ret, const struct tls_credentials *c, int fd,
	    const char *host, struct err *err)
{
	struct tls *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return err_set(err, ENOMEM, "out of memory");
	pthread_mutex_init(&t->lock, NULL);
	t->fd = fd;
	t->side = c->side;
	t->host = host ? strdup(host) : NULL;
	r = host && !t->host ? GNUTLS_E_MEMORY_ERROR : start(t, c);
	if (!r) {
		*ret = t;
		return 0;
	}
	tls_free(t);
	return err_set(err, ENOMEM, "TLS: %s", gnutls_strerror(r));
}

void tls_free(struct tls *t)
{
	if (!t)
		return;
	if (t->session)
		gnutls_deinit(t->session);
	pthread_mutex_destroy(&t->lock);
	free(t->host);
	free(t);
}

/* As the header lists them. */
static int error_of(const struct tls *t, ssize_t r)
{
	switch (r) {
	case GNUTLS_E_AGAIN:
	case GNUTLS_E_INTERRUPTED:
		return -EAGAIN;
	case GNUTLS_E_PREMATURE_TERMINATION:
	case GNUTLS_E_SESSION_EOF:
		return -EPIPE;
	case GNUTLS_E_FATAL_ALERT_RECEIVED:
		return -EKEYREJECTED;
	case GNUTLS_E_MEMORY_ERROR:
		return -ENOMEM;
	default:
		break;
	}
	if (t->error == ECONNRESET)
		return -EPIPE;
	return t->error ? -t->error : -EBADMSG;
}

const char *tls_refusal(const struct tls *t)
{
	gnutls_alert_description_t alert = gnutls_alert_get(t->session);

	if (alert == GNUTLS_A_UNEXPECTED_MESSAGE)
		return "it has no TLS, and takes plain connections only; give "
		       "--tls on both sides or on none";
	return gnutls_alert_get_name(alert);
}

static const char *other_side(const struct tls *t)
{
	return t->side == TLS_SOURCE ? "destination" : "source";
}

static int explain(struct tls *t, int r, struct err *err)
{
	int error = error_of(t, r);

	if (t->why[0])
		return err_set(err, EKEYREJECTED,
			       "the certificate of the %s is refused: %s%s%s%s",
			       other_side(t), t->why, t->host ? " (" : "",
			       t->host ? t->host : "", t->host ? ")" : "");
	if (error == -EKEYREJECTED)
		return err_set(err, EKEYREJECTED, "the %s refuses us: %s",
			       other_side(t), tls_refusal(t));
	if (error == -EPIPE)
		return err_set(err, EPIPE,
			       "the %s closed the connection before TLS was "
			       "set up",
			       other_side(t));
	if (error == -EMSGSIZE)
		return err_set(err, EMSGSIZE, "its TLS handshake is too long");
	if (t->error)
		return err_errno(err, t->error, "TLS with the %s",
				 other_side(t));
	return err_set(err, -error, "TLS with the %s: %s", other_side(t),
		       gnutls_strerror(r));
}

int tls_handshake(struct tls *t, struct err *err)
{
	int r;

	/* What is not fatal is a warning. */
	do {
		r = gnutls_handshake(t->session);
	} while (r < 0 && r != GNUTLS_E_AGAIN && !gnutls_error_is_fatal(r) &&
		 t->handshake_bytes < MAX_HANDSHAKE_BYTES);
	if (!r) {
		t->done = true;
		return 0;
	}
	if (r == GNUTLS_E_AGAIN)
		return -EAGAIN;
	if (t->why[0])
		(void)gnutls_alert_send(t->session, GNUTLS_AL_FATAL, t->alert);
	else if (r != GNUTLS_E_FATAL_ALERT_RECEIVED && !t->error)
		(void)gnutls_alert_send_appropriate(t->session, r);
	return explain(t, r, err);
}

short tls_wants(const struct tls *t)
{
	return gnutls_record_get_direction(t->session) ? POLLOUT : POLLIN;
}

int tls_send(struct tls *t, const void *buf, size_t len)
{
	ssize_t n;
	int r;

	pthread_mutex_lock(&t->lock);
	do {
		n = gnutls_record_send(t->session, t->unsent ? NULL : buf,
				       t->unsent ? 0 : len);
		t->unsent = n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED;
	} while (n == GNUTLS_E_INTERRUPTED);
	r = n < 0 ? error_of(t, n) : 0;
	pthread_mutex_unlock(&t->lock);
	return r;
}

ssize_t tls_recv(struct tls *t, void *buf, size_t size)
{
	ssize_t n;

	pthread_mutex_lock(&t->lock);
	do {
		n = gnutls_record_recv(t->session, buf, size);
	} while (n == GNUTLS_E_INTERRUPTED);
	if (n <= 0)
		n = n ? error_of(t, n) : -EPIPE;
	pthread_mutex_unlock(&t->lock);
	return n;
}

bool tls_has_more(struct tls *t)
{
	bool more;

	pthread_mutex_lock(&t->lock);
	more = gnutls_record_check_pending(t->session) > 0;
	pthread_mutex_unlock(&t->lock);
	return more;
}

/* An alert, fatal: unexpected_message. RFC 8446, sections 5.1 and 6. */
void tls_refuse_plainly(int fd)
{
	static const uint8_t alert[] = { 21, 3, 3, 0, 2, 2, 10 };

	(void)!send(fd, alert, sizeof(alert), MSG_NOSIGNAL | MSG_DONTWAIT);
}
