// @ts-check
/** Where numbers come from: the machine, the server, the build. */
import { execFileSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { cpus, release, totalmem } from 'node:os';

/** @param {import('../pgrx-tests/harness/cluster.mjs').Cluster} cluster */
export async function describeMachine(cluster) {
  const git = (/** @type {string[]} */ ...options) => execFileSync('git', options, { encoding: 'utf8' }).trim();
  const system = await readFile('/etc/os-release', 'utf8').catch(() => '');
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: cpus().length,
    memory_gib: Math.round(totalmem() / 2 ** 30),
    system: `${/^PRETTY_NAME="(.*)"$/m.exec(system)?.[1] ?? 'Linux'}, kernel ${release()}`,
    postgres: await cluster.psql('show server_version'),
    node: process.version,
    commit: git('rev-parse', '--short', 'HEAD') + (git('status', '--porcelain', 'src', 'sql') ? ' and changes' : ''),
  };
}

/** Seconds of CPU of a process, its threads included. @param {number} pid */
export async function cpuSeconds(pid) {
  const { own } = await cpuOf(pid);
  return own;
}

/** Processes of the server that work for everybody. */
const SHARED = /checkpointer|background writer|walwriter|autovacuum|logical replication|pg_outbox/;

/**
 * Seconds of CPU of all sessions that there have been: those that the postmaster has waited for,
 * and those that live or are about to be waited for.
 *
 * @param {import('../pgrx-tests/harness/cluster.mjs').Cluster} cluster
 */
export async function cpuOfBackends({ pid }) {
  const children = (await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8')).trim().split(' ');
  let sum = 0;
  for (const child of children.map(Number)) {
    const title = await readFile(`/proc/${child}/cmdline`, 'utf8').catch(() => '');
    if (!SHARED.test(title)) sum += (await cpuOf(child)).own;
  }
  return sum + (await cpuOf(Number(pid))).ofEnded;
}

/** @param {number} pid */
async function cpuOf(pid) {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ').map(Number);
  // utime, stime, and the same of children that were waited for, in ticks of a hundredth of a second.
  const [utime = 0, stime = 0, cutime = 0, cstime = 0] = fields.slice(11, 15);
  return { own: (utime + stime) / 100, ofEnded: (cutime + cstime) / 100 };
}
