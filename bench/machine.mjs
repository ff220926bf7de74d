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
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  // utime and stime, in ticks of a hundredth of a second.
  return (Number(fields[11]) + Number(fields[12])) / 100;
}
