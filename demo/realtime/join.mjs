// @ts-check
/**
 * Joining a channel: the checks in Realtime's order, the replay of stored messages, the answer.
 *
 * A refusal is a reply with a code and a sentence, and it is held back for some seconds so that a
 * client that tries again at once does no harm.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { Channel, denial, extensionsOf } from './channel.mjs';
import { DatabaseError } from './database.mjs';
import { CLOSE_GOING_AWAY } from './frames.mjs';
import { describeFlaw } from './refusals.mjs';
import { ReplayError, replayMessages } from './replay.mjs';
import { readToken } from './tokens.mjs';

/**
 * @typedef {object} Config
 * @property {boolean} isPrivate
 * @property {{ ack: boolean, self: boolean, replicationReady: boolean, replay?: any }} broadcast
 * @property {{ enabled: boolean, key: string }} presence
 * @property {any[]} postgresChanges
 */

/** A join that was refused: what the client reads is `code: text`. */
class Refusal extends Error {
  /**
   * @param {string} code
   * @param {string} text
   * @param {{ dropsSocket?: boolean }} [options]
   */
  constructor(code, text, { dropsSocket = false } = {}) {
    super(`${code}: ${text}`);
    this.dropsSocket = dropsSocket;
  }
}

/**
 * @param {import('./socket.mjs').Socket} socket
 * @param {import('./frames.mjs').Frame} frame
 * @param {string} topic without `realtime:`
 */
export async function joinChannel(socket, frame, topic) {
  const { options } = socket.services;
  try {
    await admit(socket, frame, topic);
  } catch (error) {
    const refusal = asRefusal(error, topic);
    options.log(`join of ${topic} refused: ${refusal.message}`);
    await pause(options.joinErrorDelayMs, undefined, { ref: false });
    socket.reply(frame, 'error', { reason: refusal.message });
    if (refusal.dropsSocket) socket.close(CLOSE_GOING_AWAY);
  }
}

/**
 * @param {import('./socket.mjs').Socket} socket
 * @param {import('./frames.mjs').Frame} frame
 * @param {string} topic
 */
async function admit(socket, frame, topic) {
  const { services } = socket;
  const { tenant, authorization, database, tail } = services;
  if (topic === '') throw new Refusal('TopicNameRequired', 'You must provide a topic name');
  const config = readConfig(frame.payload?.config, tenant.options.presenceEnabled);
  checkTenant(socket, config);
  const { token, claims } = checkToken(socket, frame.payload);

  // Also a public channel needs the database: its tenant is not there without.
  await database?.ping();
  tail?.start();
  const caller = { topic, claims, headers: socket.headers };
  const readable = config.isPrivate
    ? await authorization.readable(caller, extensionsOf(config.presence.enabled))
    : new Set(extensionsOf(true));
  if (readable.size === 0) throw new Refusal('Unauthorized', denial(topic));

  const { replay } = config.broadcast;
  if (replay && !readable.has('broadcast')) throw new Refusal('Unauthorized', denial(topic));
  const replayed = replay ? await replayMessages(database, { topic, config, replay }) : [];
  if (!socket.isOpen) return;

  const replayedIds = new Set(replayed.map(({ id }) => id));
  const granted = { token, claims, readable, replayedIds };
  const identity = { topic, joinRef: frame.joinRef ?? frame.ref };
  const channel = new Channel(socket, identity, config, granted);
  channel.enter();
  if (!socket.isCounted) {
    socket.isCounted = true;
    tenant.users += 1;
  }
  welcome(socket, frame, channel, replayed);
}

/**
 * Changes of tables are not sent here, which looks as in a project that publishes none: the channel
 * is joined, and a message says why the first subscription had no success.
 *
 * @param {any} change
 */
function describeUnpublished({ event = '*', schema = 'public', table = '*', filter = '' }) {
  return (
    'Unable to subscribe to changes with given parameters. Please check Realtime is enabled for ' +
    `the given connect parameters: [event: ${event}, schema: ${schema}, table: ${table}, ` +
    `filters: [${filter}]]`
  );
}

/**
 * The answer, and what follows it at once.
 *
 * @param {import('./socket.mjs').Socket} socket
 * @param {import('./frames.mjs').Frame} frame
 * @param {Channel} channel
 * @param {import('./replay.mjs').Replayed[]} replayed
 */
function welcome(socket, frame, channel, replayed) {
  const { broadcast, postgresChanges } = channel.config;
  const { topic, isPrivate } = channel;
  socket.reply(frame, 'ok', {
    postgres_changes: postgresChanges.map((change, index) => ({ ...change, id: index + 1 })),
  });
  if (postgresChanges.length > 0) {
    channel.pushSystem('error', describeUnpublished(postgresChanges[0]), 'postgres_changes');
  }
  for (const { id, content } of replayed) {
    if (content.form === 'text') channel.push('broadcast', content.payload);
    else socket.sendBroadcast({ topic, isPrivate, id, content });
  }
  channel.syncPresence();
  if (broadcast.replicationReady) announceReplication(socket.services, channel);
}

/**
 * @param {import('./socket.mjs').Services} services
 * @param {Channel} channel
 */
function announceReplication({ tail, options }, channel) {
  const tooLate = pause(options.replicationReadyMs, 'late', { ref: false });
  Promise.race([tail ? tail.ready() : tooLate, tooLate]).then((outcome) => {
    if (!channel.isJoined) return;
    if (outcome === 'ready') channel.pushSystem('ok', 'Replication connection established');
    else channel.shutDown('Replication connection was not established in time');
  });
}

/**
 * @param {import('./socket.mjs').Socket} socket
 * @param {Config} config
 */
function checkTenant(socket, config) {
  const { tenant, state } = socket.services;
  const { limits, counters } = tenant;
  if (state.stopping) {
    throw new Refusal('RealtimeRestarting', 'Realtime is restarting, please standby');
  }
  if (tenant.suspended) {
    throw new Refusal('RealtimeDisabledForTenant', 'Realtime disabled for this tenant');
  }
  if (tenant.options.privateOnly && !config.isPrivate) {
    throw new Refusal('PrivateOnly', 'This project only allows private channels');
  }
  if (limits.sockets !== null && !socket.isCounted && tenant.users >= limits.sockets) {
    throw new Refusal('ConnectionRateLimitReached', 'Too many connected users');
  }
  if (limits.joinsPerSecond !== null && counters.joins.average >= limits.joinsPerSecond) {
    const text = 'Too many joins per second';
    throw new Refusal('ClientJoinRateLimitReached', text, { dropsSocket: true });
  }
  counters.joins.add();
  if (limits.channelsPerSocket !== null && socket.channels.size >= limits.channelsPerSocket) {
    throw new Refusal('ChannelRateLimitReached', 'Too many channels');
  }
}

/**
 * The token of the join, or else of the handshake.
 *
 * @param {import('./socket.mjs').Socket} socket
 * @param {any} payload
 */
function checkToken(socket, payload) {
  const given = payload?.user_token ?? payload?.access_token;
  const token = typeof given === 'string' && !given.startsWith('sb_') ? given : socket.token;
  const reading = readToken(token, socket.services.options.jwtSecret);
  if (reading.claims) return { token, claims: reading.claims };
  const { code, text } = describeFlaw(reading).join;
  throw new Refusal(code, text);
}

/**
 * What of a config can be read is applied; the rest is as if it had not been sent.
 *
 * @param {any} config
 * @param {boolean} presenceEnabled for the whole tenant
 * @returns {Config}
 */
function readConfig(config, presenceEnabled) {
  const { broadcast, presence, postgres_changes: changes } = config ?? {};
  return {
    isPrivate: readFlag(config?.private),
    broadcast: {
      ack: readFlag(broadcast?.ack),
      self: readFlag(broadcast?.self),
      replicationReady: readFlag(broadcast?.replication_ready),
      replay: broadcast?.replay ?? undefined,
    },
    presence: {
      enabled: presenceEnabled || readFlag(presence?.enabled),
      key: typeof presence?.key === 'string' && presence.key !== '' ? presence.key : randomUUID(),
    },
    postgresChanges: Array.isArray(changes) ? changes.filter((change) => change !== null) : [],
  };
}

const readFlag = (/** @type {unknown} */ value) => value === true || value === 'true';

/**
 * @param {unknown} error
 * @param {string} topic
 * @returns {Refusal}
 */
function asRefusal(error, topic) {
  if (error instanceof Refusal) return error;
  if (error instanceof ReplayError) return new Refusal('UnableToReplayMessages', error.message);
  if (!(error instanceof DatabaseError)) throw error;
  switch (error.trouble) {
    case 'RlsPolicyError':
      return new Refusal('Unauthorized', denial(topic));
    case 'MissingPartition':
      return new Refusal(
        'MissingPartition',
        'Realtime was unable to find the expected messages partition',
      );
    case 'QueryCanceled':
      return new Refusal('QueryCanceled', 'Query was cancelled, please try again');
    case 'IncreaseConnectionPool':
      return new Refusal('IncreaseConnectionPool', 'Please increase your connection pool size');
    case 'DatabaseLackOfConnections':
      return new Refusal(
        'DatabaseLackOfConnections',
        "Database can't accept more connections, Realtime won't connect",
      );
    default:
      return new Refusal(
        'UnableToConnectToProject',
        'Realtime was unable to connect to the project database',
      );
  }
}
