/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Another user of sockmaps, as proxies are: an sk_skb program sends what a socket receives back the
 * way it came, without the program that owns the socket. Its owner puts it on `echoed`.
 */
#include <linux/types.h>
#include <uapi/linux/bpf.h>

BPF_SOCKHASH(echoed, __u32, 16);

int echo_verdict(struct __sk_buff *skb)
{
	__u32 key = 0;
	int verdict;

	verdict = echoed.sk_redirect_hash(skb, &key, 0);
	return verdict;
}
