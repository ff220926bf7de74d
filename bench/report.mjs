// @ts-check
/** Numbers into words: the table on the terminal, and the fragment that the README shows. */

/** @typedef {{ min: number, median: number, max: number }} Spread */

/**
 * @typedef {object} Results
 * @property {string} at
 * @property {{ rounds: number, seconds: number }} budget
 * @property {Awaited<ReturnType<import('./machine.mjs').describeMachine>>} machine
 * @property {Awaited<ReturnType<import('./capture.mjs').measureCapture>>} [capture]
 * @property {Awaited<ReturnType<import('./latency.mjs').measureLatency>>} [latency]
 * @property {Awaited<ReturnType<import('./drain.mjs').measureDrain>>} [drain]
 * @property {Awaited<ReturnType<import('./idle.mjs').measureIdle>>} [idle]
 */

/**
 * The ratios of two arms, round by round.
 *
 * @param {number[]} arm
 * @param {number[]} reference
 * @returns {Spread}
 */
export function ratios(arm, reference) {
  return spread(arm.map((value, round) => value / reference[round]));
}

/** @param {number[]} values @returns {Spread} */
function spread(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  const median = (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2;
  return { min: sorted[0], median, max: sorted[sorted.length - 1] };
}

/** @param {number[]} values */
export function percentiles(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (/** @type {number} */ share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  return { p50: at(0.5), p99: at(0.99), max: sorted[sorted.length - 1] };
}

/** @param {Spread} spread */
const shown = ({ min, median, max }) => `**${median.toFixed(2)}** (${min.toFixed(2)}–${max.toFixed(2)})`;

/** @param {string[]} head @param {string[][]} rows */
const table = (head, rows) => [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n');

/** @param {Results} results */
export function asMarkdown({ at, budget, machine, capture, latency, drain, idle }) {
  const parts = [`Measured ${at.slice(0, 10)} on ${machine.cores} cores (${machine.cpu}), ${machine.memory_gib} GiB,
${machine.system}, PostgreSQL ${machine.postgres}, clients on the same machine, commit ${machine.commit}.`];
  if (capture) {
    parts.push(`What capture costs the writer: ratio to the same table without a trigger, median of ${budget.rounds} paired rounds of
${budget.seconds} s (least–greatest), fsync on. "By hand" is a plpgsql row trigger that inserts jsonb into a table with a primary key.`,
    table(['statement', 'clients', 'throughput: pg_outbox', 'by hand', 'CPU: pg_outbox', 'by hand'],
      capture.map(({ workload, clients, throughput_ratio: throughput, cpu_ratio: cpu }) => [
        workload, String(clients), shown(throughput.capture), shown(throughput.plpgsql), shown(cpu.capture), shown(cpu.plpgsql)])));
  }
  const rows = [];
  if (latency) {
    const { statement_to_post_ms: statement, entry_to_post_ms: entry } = latency;
    rows.push([`a lone event, from its statement to the POST (${latency.events} events)`, `p50 ${statement.p50.toFixed(1)} ms, p99 ${statement.p99.toFixed(1)} ms`]);
    rows.push(['… from the entry, just before the commit, to the POST', `p50 ${entry.p50.toFixed(1)} ms, p99 ${entry.p99.toFixed(1)} ms`]);
  }
  for (const { shape, events, events_per_second: rate, relay_cpu_us_per_event: cpu } of drain ?? []) {
    rows.push([`drain of ${events.toLocaleString('en')} events, ${shape}`, `${rate.toLocaleString('en')} events/s, ${cpu.toFixed(1)} µs of relay CPU each`]);
  }
  if (idle) {
    rows.push([`idle for ${idle.seconds} s`, `${idle.transactions} transactions (the poll), ${idle.relay_cpu_ms.toFixed(0)} ms of CPU`]);
  }
  if (rows.length) parts.push(table(['what', 'measured'], rows));
  return `${parts.join('\n\n')}\n`;
}

/** The same for a terminal: columns aligned, no markup. @param {Results} results */
export function asTable(results) {
  return asMarkdown(results).replaceAll('**', '').split('\n\n').map(aligned).join('\n\n');
}

/** @param {string} block */
function aligned(block) {
  if (!block.startsWith('|')) return block;
  const rows = block.trimEnd().split('\n').filter((line) => !line.startsWith('| ---'))
    .map((line) => line.slice(2, -2).split(' | '));
  const widths = rows[0].map((_, index) => Math.max(...rows.map((row) => row[index].length)));
  return rows.map((row) => row.map((cell, index) => cell.padEnd(widths[index])).join('  ').trimEnd()).join('\n');
}
