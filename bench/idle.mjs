// @ts-check
/** What an idle relay does: transactions in its database and CPU of its process, over 20 seconds. */
import { setTimeout as pause } from 'node:timers/promises';
import { cpuSeconds } from './machine.mjs';
import { openDatabase, relayPid } from './setup.mjs';
import { startSink } from './sink.mjs';

const IDLE_MS = 20_000;
/** Until the statistics of what came before are in, and the relay has come to rest. */
const SETTLE_MS = 8_000;

/** @param {import('../pgrx-tests/harness/cluster.mjs').Cluster} cluster */
export async function measureIdle(cluster) {
  const sink = await startSink({ keepBodies: false, onPost: () => {} });
  const database = await openDatabase(cluster, 'bench_idle', sink.url);
  await cluster.psql("insert into job (org_id) values ('org'); select outbox.wait_until_delivered()", { database });
  const pid = await relayPid(cluster, database);
  const look = async () => ({
    transactions: Number(await cluster.psql(
      `select xact_commit + xact_rollback from pg_stat_database where datname = '${database}'`)),
    cpu: await cpuSeconds(pid),
  });
  await pause(SETTLE_MS);
  const before = await look();
  await pause(IDLE_MS);
  const after = await look();
  await sink.stop();
  return {
    seconds: IDLE_MS / 1000,
    transactions: after.transactions - before.transactions,
    relay_cpu_ms: (after.cpu - before.cpu) * 1000,
  };
}
