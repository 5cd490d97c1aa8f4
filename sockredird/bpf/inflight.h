/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Is a redirect towards a socket in flight? Between the verdict of the sk_msg program and the
 * target's queue the sender holds a reference to its own psock (tcp_bpf_sendmsg()) and one to the
 * target (sk_psock_msg_verdict()); taking the target's psock away then would fail its send().
 */

#define MAX_WAITERS 8
#define CROWD (~0ULL)

/*
 * The task, reader, writer or connect(2), that is asleep on this socket in the kernel's TCP code, by
 * the address of its entry on the socket's wait queue: such an entry names the task
 * (DEFINE_WAIT_FUNC()), where those of poll() and epoll name something else, or nothing. 0 if there
 * is none, CROWD if there are several, or too many entries to see them all.
 */
inline_fn __u64 sleeper_on(__u64 sk)
{
	__u64 wq = 0, entry = 0, found = 0, head, task, leader, again;

	if (KERNEL_FIELD(wq, sk, OFF_sock_sk_wq))
		return CROWD;
	if (!wq)
		return 0;
	head = wq + OFF_socket_wq_head;
	if (KERNEL_FIELD(entry, head, 0))
		return CROWD;
#pragma unroll
	for (int i = 0; i < MAX_WAITERS; i++) {
		if (entry == head)
			return found;
		entry -= OFF_wait_queue_entry_entry;
		task = leader = again = 0;
		KERNEL_FIELD(task, entry, OFF_wait_queue_entry_private);
		if (task && !KERNEL_FIELD(leader, task, OFF_task_struct_group_leader) && leader &&
		    !KERNEL_FIELD(again, leader, OFF_task_struct_group_leader) && again == leader)
			found = found ? CROWD : entry;
		if (KERNEL_FIELD(entry, entry, OFF_wait_queue_entry_entry))
			return CROWD;
	}
	return entry == head ? found : CROWD;
}

/* Whether somebody is still asleep who was there when sleeper_on() gave `then`; or may be. */
inline_fn int sleeps_on(__u64 sk, __u64 then)
{
	__u64 wq = 0, entry = 0, head;

	if (then == CROWD)
		return sleeper_on(sk) != 0;
	if (KERNEL_FIELD(wq, sk, OFF_sock_sk_wq))
		return 1;
	if (!wq)
		return 0;
	head = wq + OFF_socket_wq_head;
	if (KERNEL_FIELD(entry, head, 0))
		return 1;
#pragma unroll
	for (int i = 0; i < MAX_WAITERS; i++) {
		if (entry == head)
			return 0;
		if (entry - OFF_wait_queue_entry_entry == then || KERNEL_FIELD(entry, entry, 0))
			return 1;
	}
	return entry != head;
}

inline_fn __u32 psock_references(__u64 psock)
{
	__u32 refs = 0;

	return KERNEL_FIELD(refs, psock, OFF_sk_psock_refcnt) ? ~0U : refs;
}

/*
 * Whether nobody sends on `sender`: its psock has the reference of the sockhash, and at the most
 * that of a reader asleep in recv(). To be relied on only while new redirects cannot start.
 */
inline_fn int idle_sender(__u64 sender)
{
	__u64 psock = psock_of(sender), sleeper;
	__u32 refs;

	if (!psock)
		return 1;
	refs = psock_references(psock);
	if (refs == 1)
		return 1;
	if (refs != 2)
		return 0;
	sleeper = sleeper_on(sender);
	return sleeper && sleeper != CROWD && psock_references(psock) == 2;
}
