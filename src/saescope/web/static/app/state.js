// What a page shows lives in its address, so that a link, a reload and the back button give it again.

/** Values of the address; those that are missing have the value in `defaults`, and its type. */
export function readState(defaults) {
  const given = new URLSearchParams(location.search);
  const state = {};
  for (const [key, standard] of Object.entries(defaults)) {
    const all = given.getAll(key);
    if (!all.length) state[key] = standard;
    else if (Array.isArray(standard)) state[key] = all;
    else if (typeof standard === "number") state[key] = Number.isFinite(Number(all[0])) && all[0] !== "" ? Number(all[0]) : standard;
    else if (typeof standard === "boolean") state[key] = all[0] === "1";
    else state[key] = all[0];
  }
  return state;
}

/** Write values into the address; those that equal `defaults` are left out, what else it holds stays. */
export function writeState(state, defaults) {
  const given = new URLSearchParams(location.search);
  for (const [key, standard] of Object.entries(defaults)) {
    given.delete(key);
    const value = state[key];
    if (JSON.stringify(value) === JSON.stringify(standard) || value === null || value === undefined || value === "") continue;
    for (const each of Array.isArray(value) ? value : [value]) given.append(key, each === true ? "1" : each === false ? "0" : each);
  }
  const text = given.toString();
  history.replaceState(history.state, "", `${location.pathname}${text ? `?${text}` : ""}${location.hash}`);
}
