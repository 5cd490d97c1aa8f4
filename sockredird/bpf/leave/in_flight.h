/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Is a redirect towards a socket in flight? Between the verdict of the sk_msg program and the
 * target's queue the sender holds a reference to its own psock (tcp_bpf_sendmsg()) and one to the
 * target (sk_psock_msg_verdict()); taking the target's psock away then would fail its send().
 *
 * It gives them back after the message is in the queue, each with a release (sk_psock_put(),
 * sock_put()). So who looks reads the references first, then the queue, with a barrier between.
 */
#pragma once
#include "../state.h"

#define MAX_WAITERS 8
#define CROWD (~0ULL)	   /* several sleep */
#define UNSEEN (~0ULL - 1) /* not all of the entries could be looked at */

#define KERNEL_ADDRESSES 0xffff000000000000ULL /* and above, on x86-64 and arm64 */
#define PAGE_OFFSET_BITS 0xfff

/*
 * Whether an entry on a wait queue is of a task that sleeps in the socket's own code. That of
 * poll() names a struct on a kernel stack, where a pointer to a task may lie anywhere, and epoll's
 * names nothing: so the thread and its leader have to agree about both.
 *
 * The task's stack is looked at first, which is whole pages. Where a task_struct has it,
 * poll_wqueues (fs/select.c) has two small numbers; where it has the leader, there may be no more
 * stack, and each load that faults takes some 200 ns.
 */
inline_fn int names_a_task(__u64 entry)
{
	__u64 task = kernel_wait_private(entry), stack = task ? kernel_task_stack(task) : 0, leader;

	if (stack < KERNEL_ADDRESSES || stack & PAGE_OFFSET_BITS)
		return 0;
	leader = kernel_task_group_leader(task);
	return leader && kernel_task_group_leader(leader) == leader && kernel_task_tgid(leader) &&
	       kernel_task_tgid(task) == kernel_task_tgid(leader);
}

/*
 * The task, reader, writer or connect(2), that is asleep on this socket in the kernel's TCP code,
 * by the address of its entry on the socket's wait queue: such an entry names the task
 * (DEFINE_WAIT_FUNC()). 0 if there is none, or CROWD; UNSEEN if there may be one.
 *
 * Entries come and go meanwhile. One that has gone leads nowhere (list_del()), and what was its
 * memory, on a kernel stack, may name anything; so an entry that names a task counts if it is still
 * there after the look. The barrier pairs with remove_wait_queue(), which comes before other use of
 * that stack.
 */
inline_fn __u64 sleeper_on(__u64 sk, struct sock_state *st)
{
	__u64 head = wait_queue_of(sk), before = head, at, found = 0;

	if (!head)
		return 0;
	at = kernel_list_next(head);
#pragma unroll
	for (int i = 0; i < MAX_WAITERS; i++) {
		if (at == head)
			return found;
		if (!at)
			return UNSEEN;
		if (names_a_task(wait_entry(at))) {
			load_barrier(st);
			if (kernel_list_next(before) != at)
				return UNSEEN;
			found = found ? CROWD : wait_entry(at);
		}
		before = at;
		at = kernel_list_next(at);
	}
	return at == head ? found : UNSEEN;
}

/*
 * Whether the psock of `sender` has the reference of the sockhash, and at the most that of a reader
 * asleep in recv(). The references are read, then the sleeper, then the references again, as a
 * reader may come or go meanwhile. Pairs with tcp_bpf_recvmsg(), which takes its reference before it
 * sleeps, and gives it back after that.
 */
inline_fn int has_no_sender(__u64 sender, struct sock_state *st)
{
	__u64 psock = psock_of(sender), sleeper;
	__u32 refs;

	if (!psock)
		return 1;
	refs = kernel_psock_refcnt(psock);
	if (refs == 1)
		return 1;
	if (refs != 2)
		return 0;
	load_barrier(st);
	sleeper = sleeper_on(sender, st);
	load_barrier(st);
	return sleeper && sleeper < UNSEEN && kernel_psock_refcnt(psock) == 2;
}

/*
 * Whether nobody sends on `sender`. To be relied on only while new redirects cannot start. What is
 * read afterwards, as the queue, has all that was sent before: pairs with tcp_bpf_sendmsg().
 */
inline_fn int idle_sender(__u64 sender, struct sock_state *st)
{
	int idle = has_no_sender(sender, st);

	load_barrier(st);
	return idle;
}
