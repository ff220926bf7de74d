// @ts-check
/**
 * A throwaway Postgres cluster: made by initdb in a fresh folder, reachable on loopback TCP and on
 * a socket in that folder, gone without a trace afterwards.
 *
 * The postmaster is a direct child, so its end is seen at once and it leaves no zombie. A guard
 * process removes the cluster if the runner ends without `stop()`, be it by Ctrl-C or by SIGKILL.
 * Postgres refuses to run as root, so root runs it as the user `postgres`; anyone else runs it as
 * themselves. Nothing is built or installed here: the server must already have the extension.
 */
import { execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync, chownSync, closeSync, existsSync, mkdtempSync, openSync, readdirSync, readlinkSync,
} from 'node:fs';
import { appendFile, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { waitUntil } from './wait.mjs';

const DEBIAN_BIN = '/usr/lib/postgresql/15/bin';
const GUARD = fileURLToPath(new URL('guard.sh', import.meta.url));
const SETTINGS_FILE = 'cluster.conf';
const START_TIMEOUT_MS = 30_000;
/** Between asking the kernel for a port and using it, somebody else may take it. */
const PORT_TRIES = 5;

/** A cluster is thrown away, so nothing is worth an fsync unless a test says that it is. */
const DEFAULT_SETTINGS = {
  listen_addresses: '127.0.0.1',
  fsync: 'off',
  full_page_writes: 'off',
  max_connections: 100,
  shared_buffers: '64MB',
  log_line_prefix: '%m [%p] %b ',
};

const STOP_SIGNALS = /** @type {const} */ ({
  smart: 'SIGTERM', fast: 'SIGINT', immediate: 'SIGQUIT',
});

/** @typedef {Record<string, string | number>} Settings */
/** @typedef {Record<string, string | number | null>} SettingChanges */
/** @typedef {keyof typeof STOP_SIGNALS} StopMode */
/** @typedef {{ uid: number, gid: number } | null} Owner */

/**
 * @typedef {object} Options
 * @property {string} [pgBin] the server's programs; by default those of PG_CONFIG, else Debian's
 * @property {Settings} [settings] over the defaults
 * @property {boolean} [preload] whether shared_preload_libraries has `pg_outbox`; it has by default
 * @property {Record<string, string>} [env] more environment for the server
 * @property {(cluster: Cluster) => Promise<unknown>} [fill] makes the data directory in place of
 *   initdb, from a backup or another cluster's data
 */

/**
 * Makes a cluster and starts it; it answers when the promise resolves.
 *
 * @param {Options} [options]
 */
export async function startCluster(options = {}) {
  const cluster = new Cluster(options);
  try {
    await (options.fill ? options.fill(cluster) : initialise(cluster));
    await startOnFreePort(cluster);
    return cluster;
  } catch (error) {
    await cluster.stop({ mode: 'immediate' });
    throw error;
  }
}

export class Cluster {
  /** @type {import('node:child_process').ChildProcess | null} */
  #postmaster = null;
  #guard;
  /** @type {Settings} */
  #settings;
  #env;

  /** @param {Options} options */
  constructor({ pgBin = findPgBin(), settings = {}, preload = true, env = {} }) {
    this.pgBin = pgBin;
    this.owner = serverOwner();
    this.directory = mkdtempSync(join(tmpdir(), 'pg_outbox-'));
    this.dataDirectory = join(this.directory, 'data');
    this.logFile = join(this.directory, 'server.log');
    this.#guard = launchGuard(this.directory);
    chmodSync(this.directory, 0o755);
    if (this.owner) chownSync(this.directory, this.owner.uid, this.owner.gid);
    this.#env = env;
    this.#settings = {
      ...DEFAULT_SETTINGS,
      unix_socket_directories: this.directory,
      ...(preload && { shared_preload_libraries: 'pg_outbox' }),
      ...settings,
    };
  }

  get port() {
    return Number(this.#settings.port);
  }

  /** The postmaster's process id; null while the server is down. */
  get pid() {
    return this.#postmaster?.pid ?? null;
  }

  url(database = 'postgres') {
    return `postgresql://postgres@127.0.0.1:${this.port}/${database}`;
  }

  /** What the server has logged, from its first start on. */
  log() {
    return readFile(this.logFile, 'utf8');
  }

  /**
   * Runs SQL with psql, stopping at the first error, and returns the rows as psql's unaligned text
   * without headers.
   *
   * @param {string} sql
   * @param {{ database?: string }} [options]
   */
  psql(sql, { database } = {}) {
    return runPsql(this.pgBin, this.url(database), sql);
  }

  /**
   * Runs one of the server's programs as the user who runs the server, and returns what it says.
   *
   * @param {string} name such as pg_dump
   * @param {string[]} parameters
   */
  async program(name, parameters) {
    const { stdout } = await run(join(this.pgBin, name), parameters, {
      cwd: this.directory,
      env: cleanEnvironment(),
      ...this.owner,
    });
    return stdout;
  }

  /**
   * Changes settings; a null takes one back. They count from the next restart or reload on.
   *
   * @param {SettingChanges} changes
   */
  async configure(changes) {
    for (const [name, value] of Object.entries(changes)) {
      if (value === null) delete this.#settings[name];
      else this.#settings[name] = value;
    }
    const lines = Object.entries(this.#settings).map(
      ([name, value]) => `${name} = '${String(value).replaceAll("'", "''")}'\n`,
    );
    await writeFile(join(this.dataDirectory, SETTINGS_FILE), lines.join(''));
  }

  /**
   * Applies changes and asks the server to read its settings again, which it does a moment later.
   *
   * @param {SettingChanges} [changes]
   */
  async reload(changes = {}) {
    await this.configure(changes);
    this.#postmaster?.kill('SIGHUP');
  }

  async start() {
    if (this.#postmaster) throw new Error('the server is running');
    const postmaster = launchPostmaster(this, this.#env);
    this.#postmaster = postmaster;
    postmaster.once('exit', () => (this.#postmaster = null));
    await waitUntilReady(postmaster, this);
  }

  /**
   * Stops the server and keeps its data, for a later `start()`.
   *
   * @param {{ mode?: StopMode }} [options]
   */
  async halt({ mode = 'fast' } = {}) {
    await endProcess(this.#postmaster, STOP_SIGNALS[mode]);
  }

  /** @param {{ mode?: StopMode }} [options] */
  async restart(options) {
    await this.halt(options);
    await this.start();
  }

  /**
   * Kills the postmaster as the kernel would when memory runs out, and clears away what keeps the
   * next `start()` from believing that it is gone. Its backends notice by themselves; until they
   * have ended, the shared memory is in use and a start would be refused.
   */
  async kill9() {
    await endProcess(this.#postmaster, 'SIGKILL');
    const survivors = () => processesIn(this.dataDirectory);
    await waitUntil(survivors, 'the backends to end', { accept: (pids) => pids.length === 0 });
    const socket = join(this.directory, `.s.PGSQL.${this.port}`);
    const leftovers = [join(this.dataDirectory, 'postmaster.pid'), socket, `${socket}.lock`];
    await Promise.all(leftovers.map((path) => rm(path, { force: true })));
  }

  /**
   * Stops the server and removes everything. The cluster cannot be used afterwards.
   *
   * @param {{ mode?: StopMode }} [options]
   */
  async stop(options) {
    await this.halt(options);
    const guard = this.#guard;
    if (guard.exitCode !== null || guard.signalCode !== null) return;
    guard.ref();
    const exit = once(guard, 'exit');
    guard.stdin?.end();
    await exit;
  }
}

/**
 * The user who runs the server when we are root; null when we may run it ourselves.
 *
 * @returns {Owner}
 */
function serverOwner() {
  if (process.getuid?.() !== 0) return null;
  const idOf = (/** @type {string} */ kind) =>
    Number(execFileSync('id', [kind, 'postgres'], { encoding: 'utf8' }));
  return { uid: idOf('-u'), gid: idOf('-g') };
}

function findPgBin() {
  const { PG_CONFIG } = process.env;
  if (!PG_CONFIG && existsSync(DEBIAN_BIN)) return DEBIAN_BIN;
  return execFileSync(PG_CONFIG ?? 'pg_config', ['--bindir'], { encoding: 'utf8' }).trim();
}

/**
 * A backtrace in the DETAIL of each error would hide the message, and PG* variables of the caller
 * would reach into psql and the server.
 *
 * @param {Record<string, string>} [extra]
 */
function cleanEnvironment(extra = {}) {
  const kept = Object.entries(process.env).filter(
    ([name]) => !name.startsWith('PG') && name !== 'RUST_BACKTRACE' && !name.startsWith('LC_'),
  );
  return { ...Object.fromEntries(kept), LC_ALL: 'C.UTF-8', ...extra };
}

/**
 * @param {Cluster} cluster
 * @param {string[]} [more] options of initdb
 */
export async function initialise(cluster, more = []) {
  const options = '-A trust -U postgres -E UTF8 --locale=C.UTF-8 --no-sync --no-instructions';
  const { dataDirectory } = cluster;
  await cluster.program('initdb', ['-D', dataDirectory, ...options.split(' '), ...more]);
  await appendFile(join(dataDirectory, 'postgresql.conf'), `\ninclude '${SETTINGS_FILE}'\n`);
}

/** @param {string} directory */
function launchGuard(directory) {
  const guard = spawn(GUARD, [directory], { detached: true, stdio: ['pipe', 'ignore', 'ignore'] });
  guard.unref();
  /** @type {import('node:net').Socket} */ (guard.stdin).unref();
  return guard;
}

/**
 * @param {Cluster} cluster
 * @param {Record<string, string>} env
 */
function launchPostmaster({ pgBin, dataDirectory, logFile, owner }, env) {
  const log = openSync(logFile, 'a');
  // A group of its own: Ctrl-C in the terminal is for the runner, who stops the server in order.
  const postmaster = spawn(join(pgBin, 'postgres'), ['-D', dataDirectory], {
    cwd: dataDirectory,
    detached: true,
    env: cleanEnvironment(env),
    stdio: ['ignore', log, log],
    ...owner,
  });
  closeSync(log);
  postmaster.unref();
  return postmaster;
}

/** @param {Cluster} cluster */
async function startOnFreePort(cluster) {
  for (let tries = 1; ; tries += 1) {
    await cluster.configure({ port: await freePort() });
    try {
      return await cluster.start();
    } catch (error) {
      const taken = (await cluster.log()).includes('Address already in use');
      if (!taken || tries === PORT_TRIES) throw error;
    }
  }
}

/** Asks the kernel for a port of the loopback address that is free now. */
export async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  server.close();
  await once(server, 'close');
  return port;
}

/**
 * The last line of the pid file says whether the server accepts connections: what pg_ctl reads, and
 * no connection of ours shows up in the statistics.
 *
 * @param {import('node:child_process').ChildProcess} postmaster
 * @param {Cluster} cluster
 */
async function waitUntilReady(postmaster, cluster) {
  /** @type {Error | undefined} */
  let failure;
  postmaster.once('error', (error) => (failure = error));
  postmaster.once('exit', (code, signal) => {
    failure ??= new Error(`the server ended (${signal ?? `exit code ${code}`})`);
  });
  const pidFile = join(cluster.dataDirectory, 'postmaster.pid');
  const state = () => (failure ? 'failed' : pidFileState(pidFile));
  await waitUntil(state, 'the server to accept connections', {
    timeoutMs: START_TIMEOUT_MS,
    accept: (seen) => seen === 'ready' || seen === 'failed',
  });
  if (failure) {
    const tail = (await cluster.log()).split('\n').slice(-20).join('\n');
    throw new Error(`${failure.message}; the end of its log:\n${tail}`, { cause: failure });
  }
}

/** @param {string} pidFile */
async function pidFileState(pidFile) {
  const lines = (await readFile(pidFile, 'utf8').catch(() => '')).split('\n');
  return (lines[7] ?? 'no pid file yet').trim();
}

/**
 * @param {import('node:child_process').ChildProcess | null} child
 * @param {NodeJS.Signals} signal
 */
async function endProcess(child, signal) {
  if (!child || child.exitCode !== null || child.signalCode !== null) return;
  child.ref();
  const exit = once(child, 'exit');
  child.kill(signal);
  await exit;
}

/**
 * The processes that work in a folder: for a data directory, the server's own.
 *
 * @param {string} directory
 */
export function processesIn(directory) {
  return readdirSync('/proc').filter((entry) => {
    try {
      return /^\d+$/.test(entry) && readlinkSync(`/proc/${entry}/cwd`) === directory;
    } catch {
      return false; // It ended while we looked, or is a stranger's.
    }
  });
}

/**
 * @param {string} pgBin
 * @param {string} url
 * @param {string} sql
 */
async function runPsql(pgBin, url, sql) {
  const options = ['-X', '-A', '-t', '-q', '-v', 'ON_ERROR_STOP=1', '-d', url, '-f', '-'];
  const { stdout } = await run(join(pgBin, 'psql'), options, { env: cleanEnvironment() }, sql);
  return stdout.trimEnd();
}

/**
 * Runs a program to its end; its complaint is the error's message.
 *
 * @param {string} program
 * @param {string[]} parameters
 * @param {import('node:child_process').ExecFileOptions} options
 * @param {string} [input]
 */
async function run(program, parameters, options, input = '') {
  const running = promisify(execFile)(program, parameters, {
    maxBuffer: 64 * 1024 * 1024,
    ...options,
    encoding: 'utf8',
  });
  running.child.stdin?.on('error', () => {}); // A program that failed early does not read it.
  running.child.stdin?.end(input);
  try {
    return await running;
  } catch (error) {
    const { stderr, message } = /** @type {Error & { stderr?: string }} */ (error);
    throw new Error(stderr?.trim() || message, { cause: error });
  }
}
