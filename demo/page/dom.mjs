// @ts-check
/** The little that the page needs on top of the DOM. */

/**
 * Makes an element. Properties that start with `on` are listeners, `data` is the dataset, and all
 * others are attributes; a null or false one is left out.
 *
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...(Node | string)} children
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (name === 'data') Object.assign(made.dataset, value);
    else if (value !== null && value !== false)
      made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children);
  return made;
}

/**
 * The element that must be there: a selector that finds nothing is a mistake in the page.
 *
 * @param {string} selector
 * @param {ParentNode} [root]
 * @returns {HTMLElement}
 */
export function find(selector, root = document) {
  const found = root.querySelector(selector);
  if (!found) throw new Error(`the page has no ${selector}`);
  return /** @type {HTMLElement} */ (found);
}

/**
 * Puts a text where it is not yet, so that an unchanged one is not announced again.
 *
 * @param {HTMLElement} place
 * @param {string} text
 */
export function setText(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

/** Replays an element's highlight animation. */
export function flash(/** @type {HTMLElement} */ place) {
  place.classList.remove('flash');
  void place.offsetWidth; // Without a layout in between, the browser sees no change.
  place.classList.add('flash');
}

/**
 * Keeps the elements of a list in step with its rows, reusing those of rows that stay, so that
 * focus and animations survive an update.
 *
 * @template Row
 * @param {HTMLElement} list
 * @param {(row: Row) => string} keyOf
 * @param {(row: Row) => { element: HTMLElement, update: (row: Row) => void }} make
 */
export function createRows(list, keyOf, make) {
  /** @type {Map<string, ReturnType<typeof make>>} */
  let shown = new Map();
  return {
    /** @param {Row[]} rows */
    render(rows) {
      const next = new Map(rows.map((row) => [keyOf(row), shown.get(keyOf(row)) ?? make(row)]));
      for (const [key, { element: old }] of shown) if (!next.has(key)) old.remove();
      rows.forEach((row, place) => {
        const item = /** @type {ReturnType<typeof make>} */ (next.get(keyOf(row)));
        item.update(row);
        if (list.children[place] !== item.element)
          list.insertBefore(item.element, list.children[place]);
      });
      shown = next;
    },
    /** @param {string} key */
    flash(key) {
      const item = shown.get(key);
      if (item) flash(item.element);
    },
  };
}

/**
 * A pager: two buttons and where one is.
 *
 * @param {HTMLElement} place
 * @param {(page: number) => void} go
 */
export function createPager(place, go) {
  let page = 0;
  const back = element(
    'button',
    { type: 'button', class: 'quiet', onclick: () => go(page - 1) },
    'Previous',
  );
  const on = element(
    'button',
    { type: 'button', class: 'quiet', onclick: () => go(page + 1) },
    'Next',
  );
  const where = element('span');
  place.append(back, where, on);
  return {
    /** @param {{ page: number, pageSize: number, total: number }} state */
    render(state) {
      page = state.page;
      const first = page * state.pageSize + 1;
      const last = Math.min(state.total, first + state.pageSize - 1);
      setText(
        where,
        state.total === 0 ? 'None' : `${format(first)}–${format(last)} of ${format(state.total)}`,
      );
      back.toggleAttribute('disabled', page === 0);
      on.toggleAttribute('disabled', last >= state.total);
    },
  };
}

export const format = (/** @type {number} */ number) => number.toLocaleString('en');

const TOASTS_MAX = 3;
const TOAST_MS = 4500;

/**
 * @param {string} text
 * @param {'news' | 'trouble'} [kind]
 */
export function toast(text, kind = 'news') {
  const toasts = find('.toasts');
  const shown = element('p', { class: 'toast', data: { kind } }, text);
  toasts.append(shown);
  while (toasts.children.length > TOASTS_MAX) toasts.children[0].remove();
  setTimeout(() => shown.remove(), TOAST_MS);
}
