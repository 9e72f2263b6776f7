// Live numbers, parts of pages that renew themselves, questions before what cannot be undone, and
// copying. Every page works without.
"use strict";

(() => {
  const QUIET = 5000; // milliseconds without an event that are news of their own
  const live = document.querySelector("[data-live-state]");
  const channel = new BroadcastChannel("live");
  let last = Date.now();
  let saidAt = "";
  let wait = 2000;
  let over = false; // the session is
  let source = null;
  let retry = 0;
  let stop = null; // what ends this page's part in the stream, while it has one

  const say = (text, name) => {
    if (live.textContent === text) return;
    live.textContent = text;
    live.className = `live ${name}`;
  };

  const take = (numbers) => {
    for (const place of document.querySelectorAll("[data-live]")) {
      const text = numbers[place.dataset.live];
      if (text !== undefined && place.textContent !== text) place.textContent = text;
    }
    last = Date.now();
    saidAt = numbers.at;
    wait = 2000;
    if (numbers.missing.length) say(`No news of ${numbers.missing.join(" and ")}`, "off");
    else say(`Live, ${numbers.at}`, "on");
    if (over) {
      over = false;
      follow();
    }
  };

  const signedOut = () => {
    over = true;
    leave();
    const link = document.createElement("a");
    link.href = `/login?next=${encodeURIComponent(location.pathname + location.search)}`;
    link.textContent = "sign in again";
    live.className = "live off";
    live.replaceChildren("Signed out: ", link);
  };

  const ended = (answer) => [401, 403].includes(answer.status) || answer.redirected;

  const hear = (message) => (message.over ? signedOut() : take(message.numbers));
  const tell = (message) => {
    hear(message);
    channel.postMessage(message);
  };

  const open = () => {
    source = new EventSource("/events");
    source.onmessage = (event) => tell({ numbers: JSON.parse(event.data) });
    source.onerror = async () => {
      if (source === null || source.readyState !== EventSource.CLOSED) return;
      const closed = source;
      const answer = await fetch("/events", { method: "HEAD" }).catch(() => null);
      if (source !== closed) return; // this page has left meanwhile
      if (answer !== null && ended(answer)) tell({ over: true });
      else retry = setTimeout(open, wait);
      wait = Math.min(wait * 2, 60000);
    };
  };

  const close = () => {
    clearTimeout(retry);
    source?.close();
    source = null;
  };

  // Browsers open few connections to one host. So one page alone has a stream, and tells the others
  // what comes; a page that is not seen has none. Without TLS there may be no locks: then each page
  // that is seen has its own.
  const join = () => {
    if (stop !== null) return;
    stop = close;
    if (navigator.locks === undefined) {
      open();
      return;
    }
    const given = new AbortController();
    stop = () => given.abort();
    const turn = () => {
      if (given.signal.aborted) return undefined;
      open();
      return new Promise((done) => {
        stop = () => {
          close();
          done();
        };
      });
    };
    navigator.locks.request("live", { signal: given.signal }, turn).catch(() => {}); // it has left
  };

  const leave = () => {
    stop?.();
    stop = null;
  };

  const follow = () => {
    if (document.hidden) leave();
    else join();
  };

  if (live !== null && live.dataset.liveState === "wanted") {
    channel.onmessage = (event) => hear(event.data);
    document.addEventListener("visibilitychange", () => {
      last = Date.now();
      follow();
    });
    addEventListener("pagehide", leave);
    addEventListener("pageshow", follow);
    follow();
    setInterval(() => {
      if (over || document.hidden || Date.now() - last <= QUIET) return;
      say(saidAt ? `No news since ${saidAt}` : "No news", "off");
    }, 1000);
  }

  // What only works with script is shown by it.
  const enliven = (root) => {
    for (const each of root.querySelectorAll("[data-copy], [data-scripted]")) each.hidden = false;
  };
  enliven(document);

  // A part of the page with data-renew="seconds" is fetched again. It is left alone while a button
  // is held down, which would be gone before it is let go; nobody holds one for long.
  const HELD = 5000; // milliseconds
  let heldAt = -HELD;
  for (const name of ["pointerdown", "keydown"]) addEventListener(name, () => { heldAt = Date.now(); }, true);
  for (const name of ["pointerup", "pointercancel", "keyup"]) addEventListener(name, () => { heldAt = -HELD; }, true);

  const USED = "a, button, summary, input, select, [tabindex]";
  const marked = (each) => [
    each.tagName,
    each.closest("[data-row]")?.dataset.row,
    each.getAttribute("href"),
    each.getAttribute("aria-label") ?? each.textContent,
  ].join("\n");

  // Focus, opened tables and how far they are scrolled stay as they were.
  const replace = (part, fresh) => {
    const focused = part.contains(document.activeElement) ? document.activeElement : null;
    const mark = focused && marked(focused);
    const alike = () => [...part.querySelectorAll(USED)].filter((each) => marked(each) === mark);
    const which = alike().indexOf(focused);
    const shown = [...part.querySelectorAll("details.data")].map((each) => each.open);
    const places = [...part.querySelectorAll(".scroll")].map((each) => [each.scrollLeft, each.scrollTop]);
    part.replaceChildren(...fresh.childNodes);
    enliven(part);
    part.querySelectorAll("details.data").forEach((each, place) => { each.open = shown[place] ?? false; });
    part.querySelectorAll(".scroll").forEach((each, place) => each.scrollTo(...(places[place] ?? [0, 0])));
    if (focused === null) return;
    const again = alike()[which] ?? part;
    if (again === part) part.tabIndex = -1;
    again.focus({ preventScroll: true });
  };

  for (const part of document.querySelectorAll("[data-renew]")) {
    const every = Number(part.dataset.renew) * 1000;
    const busy = () => over || document.hidden || Date.now() - heldAt < HELD
      || document.querySelector("dialog[open]");
    const renew = async () => {
      if (!busy()) {
        try {
          const answer = await fetch(location.href, { headers: { "x-renewal": "1" } });
          const page = new DOMParser().parseFromString(await answer.text(), "text/html");
          const fresh = page.getElementById(part.id);
          if (ended(answer)) {
            signedOut();
          } else if (fresh !== null && !busy()) {
            replace(part, fresh);
            if (fresh.dataset.renew === undefined) return; // it is as it will stay
          }
        } catch {
          // the next one may come through
        }
      }
      setTimeout(renew, every);
    };
    setTimeout(renew, every);
  }

  // What asks first is a <details> without script, and a dialog with it.
  document.addEventListener("click", (event) => {
    const summary = event.target.closest("details.confirm > summary");
    if (summary !== null) {
      event.preventDefault();
      ask(summary);
    }
    const copy = event.target.closest("[data-copy]");
    if (copy !== null) copyText(copy);
  });

  const ask = (summary) => {
    const details = summary.parentElement;
    const form = details.querySelector(".ask");
    if (form === null) return; // it is still in the dialog that was closed just now
    const dialog = document.createElement("dialog");
    const title = form.querySelector("h2");
    title.id = "asked";
    dialog.setAttribute("aria-labelledby", title.id);
    const no = document.createElement("button");
    no.type = "button";
    no.textContent = "Cancel";
    no.addEventListener("click", () => dialog.close());
    form.querySelector(".acts").prepend(no);
    dialog.addEventListener("close", () => {
      no.remove();
      title.removeAttribute("id");
      details.append(form);
      dialog.remove();
      summary.focus();
    });
    // Moved, not copied: ids stay unique.
    details.open = false;
    dialog.append(form);
    document.body.append(dialog);
    dialog.showModal();
    form.querySelector("[aria-invalid]")?.focus();
  };
  for (const summary of document.querySelectorAll("details.confirm[open] > summary")) ask(summary);

  const copyText = async (button) => {
    const place = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(place.textContent.trim());
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(place);
      button.textContent = "Selected: press Ctrl+C";
    }
  };

  // A page that was answered to a form gets an address that can be loaded again.
  const address = document.querySelector("[data-address]");
  if (address !== null) history.replaceState(null, "", address.dataset.address);
})();
