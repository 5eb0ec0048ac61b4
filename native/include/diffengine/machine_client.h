/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file machine_client.h
 * The embedded machine in a process of its own (diffengine-machine), as the pager, the daemon and device
 * models see it.
 *
 * A client gets the frames' file, mapped once, and an area of shared memory through which its calls go to
 * threads of the machine that run them. Everything a client sends is checked. When a client's process ends,
 * however it ends, its mappings are released, its vCPUs go, and the rings it served stay with all that is in
 * them, for paging_take_over(); its domains and programs live on.
 * (A child forked without exec shares the connection: then it ends when both have.)
 *
 * Functions return 0 (or a count) or a negative errno value, as their counterparts in machine.h and program.h
 * do; besides those, -ECONNRESET: the machine is gone, and -EPROTO: it speaks another version. Any thread may
 * call anything at any time; more than DE_CLIENT_CALLS calls at a time wait for each other.
 */
#ifndef DIFFENGINE_MACHINE_CLIENT_H
#define DIFFENGINE_MACHINE_CLIENT_H

#include <diffengine/machine.h>
#include <diffengine/program.h>

#define DE_CLIENT_CALLS 32u /**< under way at a time, those that wait included */

struct de_machine_client;

enum de_client_role {
    /** Pager, daemon: the frames' file is mapped read-only, and read-write maps are refused (-EPERM). */
    DE_CLIENT_READER = 0,
    /**
     * A device model: the whole file is writable for it. That it writes only to frames it has mapped is up to
     * it, as it is up to a device model on Xen, which may map what it likes.
     */
    DE_CLIENT_DEVICE_MODEL = 1,
};

/** @return 0, the errno of connect(), -EPROTO, -EACCES (another user's machine), -EUSERS (it has too many
 * clients). */
int de_client_connect(const char *socket_path, enum de_client_role role, struct de_machine_client **client);
/** Hang up. No call may be under way; mappings and vCPUs go. */
void de_client_free(struct de_machine_client *client);
/** The operations table on this connection; valid as long as it. wait() gives -ECONNRESET when the machine is
 * gone. */
struct de_hypervisor de_client_hypervisor(struct de_machine_client *client);
/** A wait for events without a timeout looks for so long whether there are any before it sleeps (0: at the
 * start). Before the first. */
void de_client_spin(struct de_machine_client *client, uint64_t ns);
/** The frames' file, owned by the client: fstat's st_blocks * 512 is the memory that frames really take. */
int de_client_fd(const struct de_machine_client *client);
/** End the machine's process; it hangs up on every client. 0 also if it is gone already. */
int de_client_shut_down(struct de_machine_client *client);

/* As in machine.h. */
int de_client_account(struct de_machine_client *client, struct de_machine_accounting *accounting);
/** -ENOMEM also if all domains together would have more than 16 gfns for each frame of the machine. */
int de_client_domain_create(struct de_machine_client *client, uint32_t gfns, uint16_t *domain);
int de_client_domain_create_as(struct de_machine_client *client, uint32_t gfns, const struct de_uuid *uuid,
                               uint16_t *domain);
int de_client_domain_destroy(struct de_machine_client *client, uint16_t domain);
int de_client_domain_list(struct de_machine_client *client, uint16_t first, struct de_domain_info *infos,
                          size_t capacity);
int de_client_domain_account(struct de_machine_client *client, uint16_t domain,
                             struct de_domain_accounting *accounting);
int de_client_domain_crash_reason(struct de_machine_client *client, uint16_t domain, char *text,
                                  size_t capacity);
int de_client_p2m_type(struct de_machine_client *client, uint16_t domain, uint32_t gfn);
int64_t de_client_populate(struct de_machine_client *client, uint16_t domain, const uint32_t *gfns,
                           const uint8_t *const *pages, size_t count, int32_t *errors);
int de_client_claim(struct de_machine_client *client, uint16_t domain, uint64_t pages);
int de_client_log_dirty_enable(struct de_machine_client *client, uint16_t domain);
int de_client_log_dirty_disable(struct de_machine_client *client, uint16_t domain);
/** Not at one moment for ranges over 2^21 gfns. */
int de_client_log_dirty_read(struct de_machine_client *client, uint16_t domain, bool clean, uint32_t first,
                             uint32_t count, uint8_t *bits);
/** -ENOMEM per page also if this client has mapped the frame 65,535 times already. */
int de_client_map(struct de_machine_client *client, uint16_t domain, bool writable, const uint32_t *gfns,
                  size_t count, uint8_t **pages, int32_t *errors);
void de_client_unmap(struct de_machine_client *client, const uint8_t *const *pages, size_t count);

/* vCPUs that run at this client's call, one access at a time; each access that waits holds one of the calls.
 */

struct de_client_vcpu;

int de_client_vcpu_create(struct de_machine_client *client, uint16_t domain, struct de_client_vcpu **vcpu);
void de_client_vcpu_free(struct de_client_vcpu *vcpu);
/** The first @p capacity (at most 512) latencies are written there by de_client_vcpu_statistics(). */
void de_client_vcpu_sample(struct de_client_vcpu *vcpu, uint64_t *samples_ns, size_t capacity);
int de_client_vcpu_statistics(struct de_client_vcpu *vcpu, struct de_vcpu_statistics *statistics);
int de_client_vcpu_kick(struct de_client_vcpu *vcpu);
int de_client_guest_read(struct de_client_vcpu *vcpu, uint32_t gfn, uint32_t offset, void *buffer,
                         uint32_t len);
int de_client_guest_write(struct de_client_vcpu *vcpu, uint32_t gfn, uint32_t offset, const void *buffer,
                          uint32_t len);
int de_client_guest_release(struct de_client_vcpu *vcpu, uint32_t gfn);
int de_client_guest_obtain(struct de_client_vcpu *vcpu, uint32_t gfn);

/* Programs run in the machine. They need there what they compare with: contents, which never change. */

/**
 * Give the machine @p bytes bytes that nobody can change any more.
 * @param fd A memfd with the seals F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_WRITE; stays the caller's.
 * @param[out] contents Its id. It goes with the client or de_client_contents_remove(), but not before the
 * programs that use it. -EINVAL: not such a file. -ENOSPC: too many.
 */
int de_client_contents_add(struct de_machine_client *client, int fd, uint32_t *contents);
/** The same with copies of pages (NULL entries, and zero pages, take no memory). */
int de_client_contents_add_pages(struct de_machine_client *client, const uint8_t *const *pages, size_t count,
                                 uint32_t *contents);
int de_client_contents_remove(struct de_machine_client *client, uint32_t contents);

/**
 * Start a program. @p options->content is not looked at: page i is page i of @p contents (0: all zero), which
 * must hold gfns pages. hot and bits are sent along. @return also -ENOENT: no such contents; -ENOSPC: 256
 * programs.
 */
int de_client_program_start(struct de_machine_client *client, uint16_t domain,
                            const struct de_program_options *options, uint32_t contents, uint32_t *program);
/** -ENOENT: no such program. Any client, not only the one that started it. */
int de_client_program_read(struct de_machine_client *client, uint32_t program,
                           struct de_program_result *result);
/**
 * Stop it, wait for its end, free it.
 * @param[out] samples_ns Up to @p capacity fault latencies; result->samples says how many. May be NULL.
 */
int de_client_program_stop(struct de_machine_client *client, uint32_t program,
                           struct de_program_result *result, uint64_t *samples_ns, size_t capacity);

#endif
