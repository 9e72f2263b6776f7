// Live numbers, parts of pages that renew themselves, questions before what cannot be undone, and
// copying. Every page works without.
"use strict";

(() => {
  const QUIET = 5000; // milliseconds without an event that are news of their own
  const live = document.querySelector("[data-live-state]");
  let last = 0;
  let saidAt = "";
  let wait = 2000;

  const say = (text, name) => {
    if (live === null || live.textContent === text) return;
    live.textContent = text;
    live.className = `live ${name}`;
  };

  const take = (event) => {
    const numbers = JSON.parse(event.data);
    for (const place of document.querySelectorAll("[data-live]")) {
      const text = numbers[place.dataset.live];
      if (text !== undefined && place.textContent !== text) place.textContent = text;
    }
    last = Date.now();
    saidAt = numbers.at;
    wait = 2000;
    if (numbers.missing.length) say(`No news of ${numbers.missing.join(" and ")}`, "off");
    else say(`Live, ${numbers.at}`, "on");
  };

  const listen = () => {
    const source = new EventSource("/events");
    source.onmessage = take;
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return;
      setTimeout(listen, wait);
      wait = Math.min(wait * 2, 60000);
    };
  };

  if (live !== null && live.dataset.liveState === "wanted") {
    listen();
    const began = Date.now();
    setInterval(() => {
      if (Date.now() - (last || began) > QUIET) {
        say(saidAt ? `No news since ${saidAt}` : "No news", "off");
      }
    }, 1000);
  }

  // A part of the page with data-renew="seconds" is fetched again; it is left alone while in use.
  for (const part of document.querySelectorAll("[data-renew]")) {
    const every = Number(part.dataset.renew) * 1000;
    const renew = async () => {
      const busy = document.hidden || part.contains(document.activeElement)
        || part.querySelector("details[open]") || document.querySelector("dialog[open]");
      if (!busy) {
        try {
          const answer = await fetch(location.href, { headers: { "x-renewal": "1" } });
          if (answer.status === 403 || answer.redirected) return;
          const page = new DOMParser().parseFromString(await answer.text(), "text/html");
          const fresh = page.getElementById(part.id);
          if (fresh !== null) {
            part.replaceChildren(...fresh.childNodes);
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
    const dialog = document.createElement("dialog");
    const form = summary.parentElement.querySelector(".ask");
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
      summary.parentElement.append(form);
      dialog.remove();
      summary.focus();
    });
    // Moved, not copied: ids stay unique.
    dialog.append(form);
    document.body.append(dialog);
    dialog.showModal();
  };

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
  for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;

  // A page that was answered to a form gets an address that can be loaded again.
  const replace = document.querySelector("[data-address]");
  if (replace !== null) history.replaceState(null, "", replace.dataset.address);
})();
