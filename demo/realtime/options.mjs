// @ts-check
/** What can be set, and what it is when it is not: the values of a self-hosted Realtime. */

/**
 * The limits of the tenant. null takes one off.
 *
 * @typedef {object} Limits
 * @property {number | null} eventsPerSecond sent and delivered, as an average over 60 s; also the
 *   largest batch and the limit of HTTP requests
 * @property {number | null} payloadKb
 * @property {number | null} channelsPerSocket
 * @property {number | null} sockets with a channel
 * @property {number | null} joinsPerSecond
 * @property {number | null} presenceEventsPerSecond
 * @property {number | null} presenceCallsPerWindow of one channel
 * @property {number} presenceWindowMs
 */

/** @type {Readonly<Limits>} */
export const LIMITS = Object.freeze({
  eventsPerSecond: 100,
  payloadKb: 3000,
  channelsPerSocket: 100,
  sockets: 200,
  joinsPerSecond: 100,
  presenceEventsPerSecond: 1000,
  presenceCallsPerWindow: 5,
  presenceWindowMs: 30_000,
});

/** @type {Readonly<Limits>} */
export const NO_LIMITS = Object.freeze({
  eventsPerSecond: null,
  payloadKb: null,
  channelsPerSocket: null,
  sockets: null,
  joinsPerSecond: null,
  presenceEventsPerSecond: null,
  presenceCallsPerWindow: null,
  presenceWindowMs: 30_000,
});

const DEFAULTS = {
  host: '127.0.0.1',
  port: 0,
  databaseUrl: /** @type {string | null} */ (null),
  databaseConnections: 5,
  databaseConnectTimeoutMs: 5_000,
  tenantId: 'realtime-dev',
  strictHost: false,
  privateOnly: false,
  presenceEnabled: false,
  joinErrorDelayMs: 5_000,
  handshakeErrorDelayMs: 2_000,
  socketIdleMs: 60_000,
  socketWithoutChannelMs: 10 * 60_000,
  tokenCheckMs: 5 * 60_000,
  presenceDiffMs: 1_500,
  replicationReadyMs: 15_000,
  clock: () => performance.now(),
  log: /** @type {(line: string) => void} */ (() => {}),
};

/**
 * @typedef {object} Given
 * @property {string} jwtSecret checks every token
 * @property {Partial<Limits> | false} [limits] changes to the defaults; false takes all of them off
 *
 * @typedef {typeof DEFAULTS & { jwtSecret: string, limits: Limits }} Options
 */

/**
 * - `host`, `port`: where to listen; port 0 takes a free one
 * - `databaseUrl`: where private channels are decided and `realtime.messages` lives; without it
 *   there are public channels only, and private ones for service_role
 * - `databaseConnections`: at most so many, and `databaseConnectTimeoutMs`: how long one is waited
 *   for
 * - `tenantId`, `strictHost`: the tenant is named by the first label of the request's Host; unless
 *   strict, any loopback name or address is the tenant too
 * - `privateOnly`: public channels are refused; `presenceEnabled`: presence without being asked
 * - `joinErrorDelayMs`, `handshakeErrorDelayMs`: how long a refusal is held back
 * - `socketIdleMs`: a socket silent for this long is closed; `socketWithoutChannelMs`: how often
 *   sockets that have no channel are looked for and dropped
 * - `tokenCheckMs`: a channel's token is looked at again at least this often, and when it expires
 * - `presenceDiffMs`: how long changes of presence are gathered; `replicationReadyMs`: how long a
 *   channel that asked for it waits for the replication connection
 * - `clock`: milliseconds for the rates, so that a test need not wait a minute
 * - `log`: receives one line for each thing worth knowing, never a token or a payload
 *
 * @param {Given & Partial<typeof DEFAULTS>} given
 * @returns {Options}
 */
export function completeOptions(given) {
  const { jwtSecret, limits, ...rest } = given;
  if (typeof jwtSecret !== 'string' || !jwtSecret) throw new TypeError('jwtSecret is missing');
  const unknown = Object.keys(rest).filter((name) => !Object.hasOwn(DEFAULTS, name));
  if (unknown.length > 0) throw new TypeError(`unknown option: ${unknown.join(', ')}`);
  const set = Object.entries(rest).filter(([, value]) => value !== undefined);
  return {
    ...DEFAULTS,
    ...Object.fromEntries(set),
    jwtSecret,
    limits: completeLimits(limits === false ? NO_LIMITS : { ...LIMITS, ...limits }),
  };
}

/**
 * @param {Limits} limits
 * @returns {Limits}
 */
export function completeLimits(limits) {
  for (const [name, value] of Object.entries(limits)) {
    if (!Object.hasOwn(LIMITS, name)) throw new TypeError(`unknown limit: ${name}`);
    const isValid = value === null || (typeof value === 'number' && value >= 0);
    if (!isValid) throw new TypeError(`limit ${name} must be a number or null`);
  }
  return { ...limits };
}
